"""Launches of the modulation kernels."""

import torch
import triton
from torch import Tensor

from kernels.modulation import kernel
from kernels.modulation.shipped import NUM_WARPS, ROWS, block_of


def norm_forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``(B, N, D)``."""
    out, grid, sizes, options = _setup(x)
    kernel.norm_forward[grid](x, scale, shift, out, *sizes, eps, **options)
    return out


def norm_backward(gradient: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by ``x``, ``scale`` and ``shift``."""
    dx, grid, sizes, options = _setup(x)
    partial = torch.empty(2, x.shape[0], grid[0], x.shape[2], dtype=torch.float32, device=x.device)
    kernel.norm_backward[grid](gradient.contiguous(), x, scale, dx, partial, *sizes, eps, **options)
    dscale, dshift = (part.sum(1).to(x.dtype) for part in partial)
    return dx, dscale, dshift


def residual_forward(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """``(B, N, D)``."""
    out, grid, sizes, options = _setup(x)
    kernel.residual_forward[grid](x, gate, y, out, *sizes, **options)
    return out


def residual_backward(gradient: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by ``gate`` and ``y``."""
    dy, grid, sizes, options = _setup(y)
    partial = torch.empty(y.shape[0], grid[0], y.shape[2], dtype=torch.float32, device=y.device)
    kernel.residual_backward[grid](gradient.contiguous(), gate, y, dy, partial, *sizes, **options)
    return partial.sum(1).to(y.dtype), dy


def _setup(x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, int], dict[str, int]]:
    """Output, grid, sizes and options of a launch over the tokens of ``x``."""
    batch, tokens, width = x.shape
    options = {"ROWS": ROWS, "BLOCK_D": block_of(width), "num_warps": NUM_WARPS}
    return torch.empty_like(x), (triton.cdiv(tokens, ROWS), batch), (tokens, width), options
