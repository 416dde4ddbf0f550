"""The discriminator's two paths: one state dict, the same verdicts and gradients."""

import pytest
import torch

from ladd_dist.config import DiscriminatorConfig
from ladd_dist.methods.ladd.heads import DiscriminatorHeads

GRID, BATCH = (3, 5), 2
# fp32 differs by the order of sums. In bf16 both round at the same places, each by up to 2^-8, so that they are up to
# twice that apart; then LeakyReLUs tip over where that digit decides.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2 * 2**-8, 5e-2)}


def heads(implementation):
    torch.manual_seed(0)
    config = DiscriminatorConfig(width=16, out_width=16, groups=4, cond_width=8)
    module = DiscriminatorHeads(config, 2, 10, 6, implementation)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


def run(implementation, dtype, gradients="once", first=0):
    """Logits, and their gradients by features and parameters."""
    g = torch.Generator().manual_seed(1)
    draw = [torch.randn(BATCH, 15, 10, generator=g).to(dtype).requires_grad_() for _ in range(2)]
    features, t, pooled = draw[first:], torch.tensor([0.2, 0.9]), torch.randn(BATCH, 6, generator=g)
    module = heads(implementation)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = module(features, GRID, t, pooled, first, gradients)
    direction = 1 + torch.randn(2, *logits.shape[1:], generator=g)[first:]
    leaves = features if gradients == "inputs" else [*features, *module.parameters()]
    return logits, torch.autograd.grad(logits, leaves, direction)


def apart(a, b):
    return float((a.double() - b.double()).detach().norm() / b.double().detach().norm())


def test_both_paths_have_one_state_dict():
    torch_path, triton_path = heads("reference").state_dict(), heads("triton").state_dict()
    assert list(torch_path) == list(triton_path)
    assert all(torch.equal(torch_path[key], value) for key, value in triton_path.items())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("gradients_first", [("once", 0), ("once", 1), ("inputs", 0)], ids=str)
def test_both_paths_make_the_same_logits_and_gradients(dtype, gradients_first):
    (ours, our_gradients), (theirs, their_gradients) = (
        run(i, dtype, *gradients_first) for i in ("triton", "reference")
    )
    forward, backward = TOLERANCE[dtype]
    assert apart(ours, theirs) < forward
    # Of all heads together: a bias in front of a norm hardly has a gradient of its own.
    assert apart(*(torch.cat([g.flatten() for g in gs]) for gs in (our_gradients, their_gradients))) < backward


def test_r1_takes_the_torch_path_by_itself():
    features, t, pooled = (
        [torch.randn(BATCH, 15, 10) for _ in range(2)],
        torch.tensor([0.2, 0.9]),
        torch.randn(BATCH, 6),
    )
    ours, theirs = (heads(path)(features, GRID, t, pooled, 0, "twice") for path in ("triton", "reference"))
    assert all(map(torch.equal, ours, theirs))
