"""The library paths that the kernels are compared with: the same numbers, and what a CPU gains by grouping."""

import pytest
import torch
from counting import Operators

from kernels.bench.case import relative_error
from kernels.bench.grouped_heads import cases, inputs, problem, work
from kernels.bench.library_heads import looped_heads
from kernels.errors import KernelError
from kernels.heads.projection import project_tokens
from kernels.heads.reference import grouped_heads_reference
from kernels.heads.weights import HeadWeights

SMALL = {"heads": 3, "batch": 2, "height": 5, "width": 4, "features": 24, "k": 16, "n": 32, "groups": 4}


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("scope", ["raw", "end_to_end"])
def test_every_provider_of_the_benchmark_computes_the_same(scope, direction):
    made = problem(scope, direction, SMALL, torch.float32, "cpu")
    errors = {name: relative_error(run(), made.expected) for name, run in made.providers.items()}
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5, errors


def test_work_is_what_the_shapes_say():
    shape = {"heads": 38, "batch": 1, "height": 64, "width": 64, "features": 2432, "k": 256, "n": 128, "groups": 32}
    flops, _ = work("end_to_end", "forward", shape)
    assert flops == pytest.approx(0.47e12, rel=0.02)  # the narrow heads' work per sample, by hand
    assert len(list(cases())) == 12


def test_projection_and_its_gradients_twice():
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight = torch.randn(2, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 1, 4, generator=g, dtype=torch.float64, requires_grad=True)
    run = lambda w, b, *f: project_tokens(list(f), w, b, torch.float64)  # noqa: E731
    expected = torch.stack([f @ w + b for f, w, b in zip(features, weight, bias, strict=True)])
    torch.testing.assert_close(run(weight, bias, *features), expected)
    assert torch.autograd.gradcheck(run, (weight, bias, *features))
    assert torch.autograd.gradgradcheck(run, (weight, bias, *features))


def test_projection_refuses_what_does_not_fit():
    features = [torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)]
    with pytest.raises(KernelError, match=r"2 features of width 5 want \(2, 5, 4\)"):
        project_tokens(features, torch.zeros(2, 6, 4), torch.zeros(2, 1, 4), torch.float32)
    with pytest.raises(KernelError, match="features differ in shape"):
        project_tokens([features[0], torch.zeros(2, 3, 5)], torch.zeros(2, 5, 4), torch.zeros(2, 1, 4), torch.float32)


def test_on_a_cpu_the_torch_path_calls_no_more_operators_for_more_heads():
    """One head after the other calls about 80 for each; what that costs in time is in docs/log.md."""
    calls = {
        way: [_operators(way, heads) for heads in (2, 19, 38)] for way in (looped_heads, grouped_heads_reference)
    }
    assert len(set(calls[grouped_heads_reference])) == 1
    assert calls[grouped_heads_reference][-1] * 40 < calls[looped_heads][-1]
    few, some, many = calls[looped_heads]
    assert (some - few) / 17 == (many - some) / 19 > 60


def _operators(way, heads):
    """Forward and backward."""
    made = inputs(SMALL | {"heads": heads}, torch.float32, "cpu")
    leaves = [t.requires_grad_() for t in (made["x"], *made["weights"])]
    with Operators() as counted:
        logits = way(leaves[0], HeadWeights(*leaves[1:]), SMALL["groups"])
        torch.autograd.grad(logits.square().mean(), leaves)
    return counted.calls.total()
