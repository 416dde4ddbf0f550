"""adaLN's elementwise kernels against float64, all gradients, ragged tiles and widths that are no power of two."""

import math

import pytest
import torch

import kernels
from kernels.modulation.reference import gated_residual_reference, modulated_layer_norm_reference

OPERATIONS = {
    "norm": (kernels.modulated_layer_norm, modulated_layer_norm_reference, (False, True, True)),
    "residual": (kernels.gated_residual, gated_residual_reference, (False, True, False)),
}
"""Ours, the definition, and which arguments a sample's tokens share."""
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(2, 13, 48), (1, 8, 152), (3, 1, 33)]


def arguments(name, shape, dtype):
    g = torch.Generator().manual_seed(0)
    shared = OPERATIONS[name][2]
    return [torch.randn((shape[0], shape[2]) if s else shape, generator=g).to(dtype) for s in shared]


def differences(name, shape, dtype, implementation="triton"):
    """Relative errors of output and gradients against float64."""
    ours, definition, _ = OPERATIONS[name]
    inputs = [t.requires_grad_() for t in arguments(name, shape, dtype)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got, want = ours(*inputs, implementation=implementation), definition(*exact)
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(got, inputs, direction)
    expected = torch.autograd.grad(want, exact, direction.double())
    pairs = zip((got, *gradients), (want, *expected), strict=True)
    return [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in pairs]


@pytest.mark.parametrize("implementation", ["triton", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_output_and_all_gradients(name, shape, dtype, implementation):
    errors = differences(name, shape, dtype, implementation)
    assert max(errors) < TOLERANCE[dtype], errors


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_output_is_written_and_repeats_bit_for_bit(name, monkeypatch):
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda t: empty_like(t).fill_(math.nan))
    first, second = (differences(name, (2, 13, 48), torch.float32) for _ in range(2))
    assert first == second
    assert max(first) < TOLERANCE[torch.float32]


def test_a_large_mean_does_not_cancel_in_the_variance():
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)) + 1000
    zero = torch.zeros(1, 64)
    got = kernels.modulated_layer_norm(x, zero, zero, implementation="triton")
    want = modulated_layer_norm_reference(x.double(), zero.double(), zero.double())
    assert (got.double() - want).norm() < 1e-4 * want.norm()
