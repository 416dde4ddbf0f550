"""The conv heads' own kernels against float64: every gradient, odd grids, tails, every compute dtype."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import kernels
from kernels.errors import KernelError

# Against float64 that rounds where the kernels store: what is left is the rounding of gradients, a few units in the
# last place. (Rounding itself tips LeakyReLUs over, so that against plain float64 PyTorch's own bf16 gradients are 5%
# off: a bound that would pass almost anything.)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def problem(heads, batch, grid, k, n, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0, centre=0.0):
        return centre + scale * torch.randn(*shape, generator=g)

    x = draw(heads, batch, *grid, k).to(dtype)
    spread = 1 / math.sqrt(9 * k)
    layers = [
        (draw(heads * c, k, 3, 3, scale=spread), *(draw(heads * c, scale=0.1, centre=m) for m in (0.5, 1.0, 0.0)))
        for c in (k, n)
    ]
    logit = draw(heads, batch, n, scale=n**-0.5)
    return x, kernels.HeadWeights(*layers[0], *layers[1], logit, draw(heads))


def leaves(x, weights, dtype=None):
    """Copies that collect gradients, in another dtype if asked."""
    copies = [t.detach().clone() if dtype is None else t.detach().to(dtype) for t in (x, *weights)]
    return [t.requires_grad_() for t in copies]


def rounded(x, dtype):
    """``x`` as ``dtype`` stores it; the gradient does not notice."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


def exact_heads(x, weights, groups, dtype):
    """The heads in the precision of ``x``, rounded to ``dtype`` where the operation says that it stores."""
    heads, image = x.shape[0], x.permute(1, 0, 4, 2, 3).flatten(1, 2)
    for filters, bias, gamma, beta in (weights[:4], weights[4:8]):
        y = rounded(F.conv2d(image, rounded(filters, dtype), bias, padding=1, groups=heads), dtype)
        image = F.leaky_relu(F.group_norm(y, heads * groups, gamma, beta, 1e-5), 0.2)
        last, image = image, rounded(image, dtype)
    logits = torch.einsum("bgnhw,gbn->gbhw", last.unflatten(1, (heads, -1)), weights.logit)
    return logits + weights.logit_bias.view(-1, 1, 1, 1)


def differences(x, weights, groups):
    """Relative errors of the logits and of every gradient against float64."""
    ours, exact = leaves(x, weights), leaves(x, weights, torch.float64)
    logits = kernels.grouped_heads(ours[0], kernels.HeadWeights(*ours[1:]), groups, implementation="triton")
    expected = exact_heads(exact[0], kernels.HeadWeights(*exact[1:]), groups, x.dtype)
    direction = 1 + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(logits, ours, direction)
    want = torch.autograd.grad(expected, exact, direction.double())
    names = ("logits", "x", *kernels.HeadWeights._fields)
    pairs = zip(names, (logits, *got), (expected, *want), strict=True)
    return {name: float((a.double() - b).detach().norm() / b.detach().norm()) for name, a, b in pairs}


def hold(x, weights, groups):
    errors = differences(x, weights, groups)
    assert all(error < TOLERANCE[x.dtype] for error in errors.values()), errors


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "heads_batch_grid_k_n_groups", [(2, 2, (7, 5), 16, 32, 4), (1, 1, (9, 8), 48, 16, 8)], ids=str
)
def test_logits_and_all_gradients(dtype, heads_batch_grid_k_n_groups):
    *shape, groups = heads_batch_grid_k_n_groups
    hold(*problem(*shape, dtype), groups)


def test_a_grid_of_many_tiles_with_a_ragged_last_one():
    hold(*problem(1, 1, (24, 36), 16, 16, torch.float16), groups=4)


@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])  # to shrink takes minutes
@given(
    heads=st.integers(1, 2),
    batch=st.integers(1, 2),
    grid=st.tuples(st.integers(1, 6), st.integers(3, 6)),
    k=st.sampled_from([16, 32]),
    n=st.sampled_from([16, 32]),
    groups=st.sampled_from([1, 2, 4]),
)
def test_any_shape(heads, batch, grid, k, n, groups):
    hold(*problem(heads, batch, grid, k, n, torch.float32), groups)


def test_a_large_mean_does_not_cancel_in_the_variance():
    x, weights = problem(1, 1, (9, 9), 16, 16, torch.float32)
    far = weights._replace(bias1=weights.bias1 + 300)
    assert differences(x, far, 4)["logits"] < 1e-4  # a difference of squares would be wrong in the first digit


def test_every_output_is_written(monkeypatch):
    """Memory that the kernels get is poisoned: what they leave out shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda t: empty(t.shape, dtype=t.dtype).fill_(math.nan))
    hold(*problem(2, 1, (7, 5), 16, 16, torch.float32), groups=4)


def test_nan_is_passed_on():
    x, weights = problem(2, 1, (4, 4), 16, 16, torch.float32)
    x[1, 0, 0, 0, 0] = math.nan
    logits = kernels.grouped_heads(x, weights, 4, implementation="triton")
    assert logits[1].isnan().all()
    assert logits[0].isfinite().all()


def test_results_do_not_change_from_run_to_run():
    x, weights = problem(1, 2, (5, 7), 16, 16, torch.float16)
    runs = []
    for _ in range(2):
        own = leaves(x, weights)
        logits = kernels.grouped_heads(own[0], kernels.HeadWeights(*own[1:]), 4, implementation="triton")
        runs.append([logits, *torch.autograd.grad(logits.sum(), own)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_second_derivative_is_refused():
    x, weights = problem(1, 1, (3, 3), 16, 16, torch.float32)
    x.requires_grad_()
    logits = kernels.grouped_heads(x, weights, 4, implementation="triton")
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    with pytest.raises(KernelError, match="cannot be differentiated again.*reference"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "heads_batch_grid_k_n_groups", [(2, 2, (7, 5), 16, 32, 4), (3, 1, (6, 4), 32, 16, 8)], ids=str
)
def test_slopes_with_the_kernels_gradients_by_filters_are_the_librarys(heads_batch_grid_k_n_groups, dtype):
    """What R1 differentiates, both results at once: only how filters get their gradient differs."""
    *shape, groups = heads_batch_grid_k_n_groups
    x, weights = problem(*shape, dtype)

    def gradients(implementation):
        own = leaves(x, weights)
        results = kernels.grouped_heads_slope(own[0], kernels.HeadWeights(*own[1:]), groups, implementation)
        directions = [torch.randn(r.shape, generator=torch.Generator().manual_seed(1)).to(r.dtype) for r in results]
        return [*results, *torch.autograd.grad(results, own, directions)]

    for got, want in zip(gradients("triton"), gradients("reference"), strict=True):
        error = float((got.double() - want.double()).detach().norm() / want.double().detach().norm())
        assert error < {torch.float32: 1e-6, torch.float16: 1e-3}[dtype]
