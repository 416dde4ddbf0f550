import math

import numpy as np
import pytest
import torch

from kernels import hinge_per_head
from ladd_dist.methods.ladd.losses import LOSSES, adversarial_loss, distillation

ROLES = ("real", "fake", "generator")


def hinge(logits: torch.Tensor, role: str) -> torch.Tensor:
    return adversarial_loss(logits, role).loss.mean()


@pytest.mark.parametrize("role", ROLES)
def test_the_kernels_hinge_is_ours(role: str) -> None:
    """Values and gradients to the bit: `auto` must not change a run."""
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, 5)
    results = []
    for loss in (adversarial_loss, lambda x, s: hinge_per_head(x, s, implementation="reference")):
        x = logits.clone().requires_grad_()
        per_head = loss(x, role)
        per_head.loss.mean().backward()
        results.append([*per_head, x.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_softplus_losses_against_plain_loops() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for role, sign in zip(ROLES, (-1, 1, -1), strict=True):
        by_hand = np.mean([math.log1p(math.exp(sign * v)) for v in x.flatten().tolist()])
        found = adversarial_loss(x, role, "softplus").loss.mean().item()
        assert abs(found - by_hand) < 1e-12


def test_both_terms_of_a_pair_give_the_gradients_of_its_one_loss() -> None:
    real, fake = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64).requires_grad_().unbind()
    terms = [
        adversarial_loss(real, "real", "relativistic", fake).loss.mean(),
        adversarial_loss(fake, "fake", "relativistic", real).loss.mean(),
    ]
    pairs = np.logaddexp(0, (fake - real).detach().numpy()).mean()
    drift = 1e-3 * real.square().mean()
    assert [term.item() for term in terms] == pytest.approx([pairs + drift.item(), pairs], abs=1e-12)
    found = torch.autograd.grad(sum(terms), [real, fake])
    expected = torch.autograd.grad(torch.nn.functional.softplus(fake - real).mean() + drift, [real, fake])
    torch.testing.assert_close(found, expected)
    assert torch.equal(adversarial_loss(fake, "generator", "relativistic").loss, -fake.flatten(1).mean(1))
    right = (real > fake).double().mean((1, 2, 3))
    for role, x, rival in (("real", real, fake), ("fake", fake, real)):
        assert torch.equal(adversarial_loss(x, role, "relativistic", rival).right, right)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_raises_real_and_the_generators_logits_and_lowers_fake_ones(name: str) -> None:
    for role, sign in zip(ROLES, (-1, 1, -1), strict=True):
        x = torch.zeros(1, 1, 1, 1, requires_grad=True)
        adversarial_loss(x, role, name).loss.sum().backward()
        assert x.grad.item() * sign > 0


def test_distillation_is_the_error_of_the_velocity() -> None:
    x0, noise, v = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64)
    t = torch.tensor([1.0, 0.25], dtype=torch.float64)
    x_t = (1 - t.view(2, 1, 1, 1)) * x0 + t.view(2, 1, 1, 1) * noise
    x0_hat = x_t - t.view(2, 1, 1, 1) * v
    torch.testing.assert_close(distillation(x0_hat, x0, t), (v - (noise - x0)).square().mean())


def test_hinge_losses_against_plain_loops():
    real, fake = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64).unbind()
    by_hand = np.mean([max(0.0, 1 - x) for x in real.flatten().tolist()])
    by_hand += np.mean([max(0.0, 1 + x) for x in fake.flatten().tolist()])
    assert abs((hinge(real, "real") + hinge(fake, "fake")).item() - by_hand) < 1e-12
    assert abs(hinge(fake, "generator").item() + np.mean(fake.flatten().tolist())) < 1e-12


def test_a_blind_discriminator_costs_two():
    blind = torch.zeros(1, 1, 2, 2)
    assert (hinge(blind, "real") + hinge(blind, "fake")).item() == 2.0


def test_the_generators_gradient_does_not_vanish_where_it_wins():
    fake = torch.full((1, 1, 2, 2), 5.0, requires_grad=True)
    hinge(fake, "generator").backward()
    assert (fake.grad == -0.25).all()
