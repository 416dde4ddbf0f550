"""The hinge kernels against float64, bit for bit from run to run."""

import math

import pytest
import torch

import kernels
from kernels.hinge.reference import hinge_reference

ROLES = ("real", "fake", "generator")


def logits(shape=(3, 2, 24, 36), seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("shape", [(3, 2, 24, 36), (2, 1, 7, 5), (1, 3, 64, 40)], ids=str)
def test_losses_statistics_and_gradient(role, shape):
    ours, exact = logits(shape).requires_grad_(), logits(shape).double().requires_grad_()
    got, want = kernels.hinge_per_head(ours, role, "triton"), hinge_reference(exact, role)
    for name in got._fields:
        torch.testing.assert_close(getattr(got, name).double(), getattr(want, name), rtol=1e-6, atol=1e-7)
    weights = torch.linspace(1, 2, shape[0])
    (gradient,) = torch.autograd.grad((got.loss * weights).sum(), ours)
    (expected,) = torch.autograd.grad((want.loss * weights.double()).sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("role", ROLES)
def test_at_the_margin_the_gradient_is_pytorchs(role):
    edge = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2)
    ours, theirs = edge.clone().requires_grad_(), edge.clone().requires_grad_()
    kernels.hinge_per_head(ours, role, "triton").loss.sum().backward()
    hinge_reference(theirs, role).loss.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("role", ROLES)
def test_the_same_bits_in_every_run_and_nothing_left_unwritten(role, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    x = logits((2, 3, 40, 40))
    first, second = (kernels.hinge_per_head(x, role, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(t.isfinite().all() for t in first)


@pytest.mark.parametrize("role", ROLES)
def test_a_logit_that_is_not_finite_shows_in_its_heads_loss(role):
    x = logits((2, 1, 4, 4))
    x[1, 0, 2, 2] = math.nan
    loss = kernels.hinge_per_head(x, role, "triton").loss
    assert loss[0].isfinite()
    assert loss[1].isnan()
