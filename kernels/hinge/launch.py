"""Launches of the hinge kernels."""

import torch
from torch import Tensor

from kernels.dispatch import cdiv
from kernels.hinge.kernel import ADDED, TILE, hinge_finish, hinge_gradient, hinge_tile


def forward(logits: Tensor, role: str) -> Tensor:
    """Means ``(3, G)`` per head: loss, logit, accuracy."""
    heads, size = logits.shape[0], logits[0].numel()
    tiles = cdiv(size, TILE)
    partial = torch.empty(3, heads, tiles, dtype=torch.float32, device=logits.device)
    means = torch.empty(3, heads, dtype=torch.float32, device=logits.device)
    hinge_tile[(tiles, heads)](logits, partial, size, ROLE=role, BLOCK=TILE)
    hinge_finish[(3 * heads,)](partial, means, size, tiles, BLOCK=ADDED)
    return means


def backward(gradient: Tensor, logits: Tensor, role: str) -> Tensor:
    """Gradient by the logits, given that by the losses ``(G,)``."""
    heads, size = logits.shape[0], logits[0].numel()
    out = torch.empty_like(logits)
    grid = (cdiv(size, TILE), heads)
    hinge_gradient[grid](gradient.contiguous(), logits, out, size, ROLE=role, BLOCK=TILE)
    return out
