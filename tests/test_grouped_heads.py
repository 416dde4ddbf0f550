"""The conv heads as a registered operation on the CPU, where the reference runs: contract, fakes, bad input."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import kernels
from kernels.errors import KernelError, KernelUnavailable

SAMPLES = [(2, 1, (7, 5), 16, 16, 4), (1, 2, (4, 6), 32, 16, 8)]


def problem(heads, batch, grid, k, n, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    layers = [(draw(heads * c, k, 3, 3) / math.sqrt(9 * k), *(draw(heads * c) for _ in range(3))) for c in (k, n)]
    weights = kernels.HeadWeights(*layers[0], *layers[1], draw(heads, batch, n), draw(heads))
    return draw(heads, batch, *grid, k).to(dtype), weights


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_registered_operation_keeps_pytorchs_contract(sample, dtype):
    *shape, groups = sample
    x, weights = problem(*shape, dtype)
    inputs = [t.requires_grad_() for t in (x, *weights)]
    kernels.grouped_heads(inputs[0], kernels.HeadWeights(*inputs[1:]), groups)  # registers it
    opcheck(torch.ops.ladd_kernels.grouped_heads, (*inputs, groups, "reference"))
    gradient, plain = torch.randn(x.shape[:-1]), [t.detach() for t in inputs]
    empty = [x.new_empty(0)] * 4
    for by_weights in (True, False):
        arguments = (gradient, plain[0], plain[1:], empty, groups, by_weights)
        opcheck(torch.ops.ladd_kernels.grouped_heads_backward, arguments)


@pytest.mark.parametrize("role", ["real", "fake", "generator"])
def test_the_registered_hinge_keeps_pytorchs_contract(role):
    logits = torch.randn(3, 2, 4, 5, requires_grad=True)
    kernels.hinge_per_head(logits, role)
    opcheck(torch.ops.ladd_kernels.hinge, (logits, role, "reference"))
    opcheck(torch.ops.ladd_kernels.hinge_backward, (torch.randn(3), logits.detach(), role, "reference"))


def test_shapes_of_the_triton_path_without_running_it(monkeypatch):
    """What a compiled graph believes about the operation on a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.empty(2, 3, 7, 5, 32, dtype=torch.bfloat16)
        layers = [(torch.empty(2 * c, 32, 3, 3), *(torch.empty(2 * c) for _ in range(3))) for c in (32, 16)]
        weights = (*layers[0], *layers[1], torch.empty(2, 3, 16), torch.empty(2))
        logits, y1, y2, moments1, moments2 = torch.ops.ladd_kernels.grouped_heads(x, *weights, 4, "triton")
    assert (logits.shape, logits.dtype) == ((2, 3, 7, 5), torch.float32)
    assert (y1.shape, y1.dtype, y2.shape) == (x.shape, torch.bfloat16, (2, 3, 7, 5, 16))
    assert (moments1.shape, moments2.shape, moments1.dtype) == ((5, 6, 32), (5, 6, 16), torch.float32)


def test_the_operation_equals_the_reference_and_its_gradients():
    x, weights = problem(2, 2, (5, 4), 16, 32)
    inputs = [t.requires_grad_() for t in (x, *weights)]
    got = kernels.grouped_heads(inputs[0], kernels.HeadWeights(*inputs[1:]), 4)
    want = kernels.grouped_heads_reference(inputs[0], kernels.HeadWeights(*inputs[1:]), 4)
    assert torch.equal(got, want)
    pairs = zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_backward_pass_stays_with_what_went_forward(monkeypatch):
    x, weights = problem(1, 1, (3, 4), 16, 16)
    logits = kernels.grouped_heads(x.requires_grad_(), weights, 4)
    monkeypatch.setenv("LADD_KERNELS", "triton")
    logits.sum().backward()
    assert x.grad.abs().max() > 0


def test_compilation_leaves_no_gap_and_changes_nothing():
    x, weights = problem(2, 1, (3, 4), 16, 16)
    x.requires_grad_()

    def loss(x):
        return kernels.hinge_per_head(kernels.grouped_heads(x, weights, 4), "generator").loss.sum()

    (plain,) = torch.autograd.grad(loss(x), x)
    (compiled,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(compiled, plain)


def test_a_second_derivative_is_refused_through_whatever_asks_for_it():
    """Weights are in a list of their own, which an autograd function does not look into."""
    x, weights = problem(2, 1, (3, 4), 16, 16)
    weights.conv1.requires_grad_()
    logits = kernels.grouped_heads(x, weights, 4)
    (gradient,) = torch.autograd.grad(logits.sum(), weights.conv1, create_graph=True)
    with pytest.raises(KernelError, match="grouped_heads cannot be differentiated again"):
        torch.autograd.grad(gradient.sum(), weights.conv1)
    logits = torch.randn(2, 1, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(kernels.hinge_per_head(logits, "real").loss.sum(), logits, create_graph=True)
    with pytest.raises(KernelError, match="hinge_per_head cannot be differentiated again"):
        gradient.sum().backward()


def test_a_second_derivative_of_the_operation_is_refused_and_the_reference_has_one():
    x, weights = problem(1, 1, (3, 4), 16, 16)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(kernels.grouped_heads(x, weights, 4).sum(), x, create_graph=True)
    with pytest.raises(KernelError, match="cannot be differentiated again.*reference"):
        gradient.square().sum().backward()
    (gradient,) = torch.autograd.grad(kernels.grouped_heads_reference(x, weights, 4).sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), x)[0].abs().max() > 0


def test_the_gradient_by_the_tokens_and_what_it_depends_on_equal_autograds():
    """In float64: R1's penalty by tokens and every weight but the last bias, which it does not depend on."""
    x, weights = problem(3, 2, (3, 5), 16, 32, torch.float64)
    weights = kernels.HeadWeights(*(w.double() for w in weights))
    leaves = [x, *weights[:-1]]
    for leaf in leaves:
        leaf.requires_grad_()
    logits = kernels.grouped_heads_reference(x, weights, 4)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    want = torch.autograd.grad(gradient.square().sum() + logits.square().sum(), leaves)
    again, slope = kernels.grouped_heads_slope(x, weights, 4)
    torch.testing.assert_close((again, slope), (logits, gradient))
    torch.testing.assert_close(torch.autograd.grad(slope.square().sum() + again.square().sum(), leaves), want)


def broken(**changes):
    x, weights = problem(2, 1, (4, 4), 32, 16)
    return changes.pop("x", x), weights._replace(**changes), 4


BAD = {
    "dimensions": (lambda: broken(x=torch.zeros(2, 16, 32)), r"x has 3 dimensions: pass projected tokens"),
    "dtype": (lambda: broken(x=torch.zeros(2, 1, 4, 4, 32, dtype=torch.float64)), r"x is torch.float64: cast it"),
    "empty": (lambda: broken(x=torch.zeros(2, 1, 0, 4, 32)), r"x is empty.*at least one"),
    "width": (lambda: broken(x=torch.zeros(2, 1, 4, 4, 24)), r"x has width 24: choose a multiple of 16"),
    "narrow": (lambda: broken(logit=torch.zeros(2, 1, 20)), r"weights.logit has width 20: choose a multiple"),
    "strides": (lambda: broken(x=torch.zeros(2, 1, 4, 32, 4).mT), r"x is not contiguous.*call x.contiguous\(\)"),
    "shape": (lambda: broken(conv2=torch.zeros(32, 16, 3, 3)), r"weights.conv2 has shape .* want \(32, 32, 3, 3\)"),
    "heads": (lambda: broken(logit_bias=torch.zeros(3)), r"weights.logit_bias has shape \(3,\).*\(2,\)"),
    "precision": (lambda: broken(bias1=torch.zeros(64).half()), r"weights.bias1 is torch.float16: .*call .float\(\)"),
    "device": (lambda: broken(beta2=torch.zeros(32, device="meta")), r"weights.beta2 is on meta and x on cpu: move"),
    "layout": (lambda: broken(gamma1=torch.zeros(64, 2)[:, 0]), r"weights.gamma1 is not contiguous: call"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_names_the_argument_and_the_remedy(case):
    make, message = BAD[case]
    with pytest.raises(KernelError, match=message):
        kernels.grouped_heads(*make())


def test_groups_that_do_not_divide_are_refused():
    x, weights = problem(2, 1, (4, 4), 32, 16)
    for groups in (0, 3, 32):
        with pytest.raises(KernelError, match=f"groups={groups} does not divide the width"):
            kernels.grouped_heads(x, weights, groups)


def test_triton_on_a_cpu_is_refused_not_replaced(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelUnavailable, match="set it to auto or reference"):
        kernels.grouped_heads(*problem(1, 1, (3, 3), 16, 16), 4, implementation="triton")
    with pytest.raises(KernelUnavailable, match="set it to auto or reference"):
        kernels.hinge_per_head(torch.zeros(1, 1, 2, 2), "real", implementation="triton")


@pytest.mark.parametrize(
    ("logits", "role", "message"),
    [
        (torch.zeros(1, 1, 2, 2), "left", "role='left' is unknown: choose one of real, fake, generator"),
        (torch.zeros(4, 4), "real", r"logits have shape \(4, 4\): pass"),
        (torch.zeros(2, 0, 4, 4), "real", "none of them 0"),
        (torch.zeros(1, 1, 2, 2).half(), "fake", r"logits are torch.float16: call .float\(\)"),
        (torch.zeros(2, 2, 2, 2).mT, "fake", r"not contiguous.*call .contiguous\(\)"),
    ],
)
def test_bad_logits_are_refused(logits, role, message):
    with pytest.raises(KernelError, match=message):
        kernels.hinge_per_head(logits, role)
