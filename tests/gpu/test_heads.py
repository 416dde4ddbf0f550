"""The heads' and the hinge's kernels on the GPU at hand: against float64, bit for bit from run to run."""

from functools import partial

import pytest
import torch

import kernels
from kernels.bench.case import relative_error
from kernels.bench.grouped_heads import LARGE, inputs
from kernels.bench.library_heads import library_heads
from kernels.hinge.reference import hinge_reference

ODD = {"heads": 3, "batch": 2, "height": 24, "width": 36, "features": 1, "k": 48, "n": 32, "groups": 8}
ALONE = ODD | {"heads": 1, "batch": 1}
SHAPES = [ODD, ODD | {"height": 7, "width": 5}, ALONE, LARGE | {"batch": 1, "heads": 4}]


def triton(x, weights, groups):
    return kernels.grouped_heads(x, weights, groups, implementation="triton")


def run(heads, x, weights, groups):
    """Logits and all gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    logits = heads(leaves[0], kernels.HeadWeights(*leaves[1:]), groups)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits) + 1
    return logits.detach(), *torch.autograd.grad(logits, leaves, direction)


def away_from_the_kink(weights):
    """The same with norm shifts of plus and minus six, so that no activation is near zero.

    There one rounding tips a LeakyReLU over and its gradient jumps: of 4 million activations one is enough for an
    error of 4e-4 in fp32, and in bf16 5e-2.
    """
    shifted = list(weights)
    for place in (3, 7):
        shifted[place] = 6 * torch.where(weights[place] > 0, 1.0, -1.0)
    return shifted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_heads_are_as_near_to_float64_as_the_library(shape, dtype):
    made, groups = inputs(shape, dtype, "cuda"), shape["groups"]
    for weights, compared in ((made["weights"], 1), (away_from_the_kink(made["weights"]), None)):
        exact = run(kernels.grouped_heads_reference, made["x"].double(), [w.double() for w in weights], groups)
        ours, theirs = (run(heads, made["x"], weights, groups) for heads in (triton, library_heads))
        for got, other, want in list(zip(ours, theirs, exact, strict=True))[:compared]:
            bound = 1e-5 if dtype == torch.float32 else 2 * relative_error((other,), (want,)) + 1e-3
            assert relative_error((got,), (want,)) < bound


@pytest.mark.parametrize(
    ("dtype", "once", "twice"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 3e-2, 2e-1)], ids=str
)
def test_the_reference_itself_runs_on_a_gpu(dtype, once, twice):
    """`kernels.heads=torch`: by autograd, as the registered operation, and R1's closed forms, of both kinds."""
    made, groups = inputs(ODD, dtype, "cuda"), ODD["groups"]
    x, weights = made["x"], away_from_the_kink(made["weights"])
    wide = x.double(), [w.double() for w in weights], groups
    exact, exact_penalty = run(kernels.grouped_heads_reference, *wide), penalty(autograd_slope, *wide)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for heads in (kernels.grouped_heads_reference, registered_reference):
            for got, want in zip(run(heads, x, weights, groups), exact, strict=True):
                assert relative_error((got,), (want,)) < once
        for implementation in ("reference", "triton"):
            slope = partial(kernels.grouped_heads_slope, implementation=implementation)
            for got, want in zip(penalty(slope, x, weights, groups), exact_penalty, strict=True):
                assert relative_error((got,), (want,)) < twice


def registered_reference(x, weights, groups):
    return kernels.grouped_heads(x, weights, groups, implementation="reference")


def autograd_slope(x, weights, groups):
    """As `grouped_heads_slope`, by autograd alone."""
    x = x.detach().requires_grad_()
    logits = kernels.grouped_heads_reference(x, weights, groups)
    return logits, *torch.autograd.grad(logits.sum(), x, create_graph=True)


def penalty(sloped, x, weights, groups):
    """Gradients of R1's penalty by both convolutions' filters."""
    weights = kernels.HeadWeights(*(w.detach().requires_grad_() for w in weights))
    _, slope = sloped(x, weights, groups)
    return torch.autograd.grad(slope.square().sum(), [weights.conv1, weights.conv2])


def test_heads_repeat_bit_for_bit():
    made = inputs(LARGE | {"batch": 2, "heads": 8}, torch.bfloat16, "cuda")
    first, second = (run(triton, made["x"], made["weights"], LARGE["groups"]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("role", ["real", "fake", "generator"])
def test_hinge(role):
    logits = torch.randn(38, 2, 64, 64, device="cuda")
    first, second = (kernels.hinge_per_head(logits, role, "triton") for _ in range(2))
    for got, again, want in zip(first, second, hinge_reference(logits.double(), role), strict=True):
        assert torch.equal(got, again)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_launches_go_to_the_tensors_device_whichever_is_current():
    made = inputs(ODD, torch.float32, "cuda:1")
    exact = run(kernels.grouped_heads_reference, made["x"], made["weights"], ODD["groups"])
    for got, want in zip(run(triton, made["x"], made["weights"], ODD["groups"]), exact, strict=True):
        assert relative_error((got,), (want,)) < 1e-5
    logits = exact[0]
    got, want = kernels.hinge_per_head(logits, "real", "triton"), hinge_reference(logits, "real")
    torch.testing.assert_close(got.loss, want.loss)
