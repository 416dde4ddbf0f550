"""The Triton kernels in order: seven launches forward, eleven backward, however many heads there are."""

from dataclasses import asdict
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels.heads.convolution import convolve, pack_filters, weight_gradient
from kernels.heads.pointwise import (
    finish_gradients,
    finish_statistics,
    logits,
    logits_gradient,
    normalise_gradient,
)
from kernels.heads.reference import EPS
from kernels.heads.tiles import POINTWISE_C, POINTWISE_M, conv_tiles, power, weight_tiles
from kernels.heads.weights import HeadWeights


class Saved(NamedTuple):
    """What the backward pass needs besides the arguments."""

    y1: Tensor
    """``(G, B, H, W, K)``, the first norm's input"""
    y2: Tensor
    """``(G, B, H, W, N)``"""
    moments1: Tensor
    """``(5, G*B, K)`` fp32, see `finish_statistics`"""
    moments2: Tensor
    """``(5, G*B, N)``"""


def forward(x: Tensor, weights: HeadWeights, groups: int) -> tuple[Tensor, Saved]:
    """Logits ``(G, B, H, W)`` in fp32, and what the backward pass needs."""
    w = weights
    y1, moments1 = _layer(x, None, w.conv1, w.bias1, (w.gamma1, w.beta1), groups)
    y2, moments2 = _layer(y1, moments1, w.conv2, w.bias2, (w.gamma2, w.beta2), groups)
    out = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    grid, images, batch, positions, n = _pointwise(y2)
    logits[grid[:2]](
        y2, moments2, w.logit, w.logit_bias, out, images, batch, positions,
        C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C),
    )  # fmt: skip
    return out, Saved(y1, y2, moments1, moments2)


def backward(
    gradient: Tensor, x: Tensor, weights: HeadWeights, groups: int, saved: Saved, by_weights: bool
) -> tuple[Tensor, ...]:
    """Gradients by ``x`` and, if asked for, by each of `HeadWeights`, in order.

    ``gradient`` ``(G, B, H, W)`` is by the logits.
    """
    w, y1, y2, moments1, moments2 = weights, *saved
    gradient = gradient.float().contiguous()
    dn2, partial2 = _logits_backward(gradient, y2, moments2, w.logit)
    dy2, (dgamma2, dbeta2, dbias2) = _norm_backward(dn2, partial2, y2, moments2, w.gamma2, groups)
    dn1, partial1 = _input_gradient(dy2, w.conv2, activation=(y1, moments1))
    dy1, (dgamma1, dbeta1, dbias1) = _norm_backward(dn1, partial1, y1, moments1, w.gamma1, groups)
    dx, _ = _input_gradient(dy1, w.conv1, activation=None)
    if not by_weights:
        return (dx,)
    first = (_weight_gradient(x, None, dy1), dbias1, dgamma1, dbeta1)
    second = (_weight_gradient(y1, moments1, dy2), dbias2, dgamma2, dbeta2)
    return dx, *first, *second, partial2[2].sum(1).view_as(w.logit), gradient.sum((1, 2, 3))


def _layer(
    x: Tensor, x_moments: Tensor | None, filters: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor], groups: int
) -> tuple[Tensor, Tensor]:
    """A convolution of ``x``, normalised on load where its moments are given, and the output's own moments."""
    packed = _pack(filters, x)
    y, partial, block = _convolve(x, x_moments, packed, bias, turn=False, activation=None)
    heads, batch, height, width, n = y.shape
    out = torch.empty(5, heads * batch, n, dtype=torch.float32, device=x.device)
    group = n // groups
    finish_statistics[(heads * batch, groups)](
        partial, *norm, out, heads * batch, batch, height * width, partial.shape[2], EPS,
        C=n, GROUP=group, TILE=block, BLOCK_C=power(group, 1, 1 << 20),
    )  # fmt: skip
    return y, out


def _pack(filters: Tensor, x: Tensor) -> Tensor:
    """Filters as ``(heads, 9, N, K)`` in the compute dtype."""
    heads, rows, k = x.shape[0], *filters.shape[:2]
    packed = torch.empty(heads, 9, rows // heads, k, dtype=x.dtype, device=x.device)
    block = power(k, 16, 128)
    pack_filters[(rows, triton.cdiv(k, block))](filters, packed, K=k, N=rows // heads, BLOCK_K=block)
    return packed


def _convolve(
    x: Tensor,
    x_moments: Tensor | None,
    packed: Tensor,
    bias: Tensor | None,
    turn: bool,
    activation: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, int]:
    """Output, its partial sums ``(2, I, T, N)`` and positions per tile. ``turn`` makes it the input's gradient."""
    heads, batch, height, width, k = x.shape
    strides = (packed.shape[3], 1) if turn else (1, packed.shape[3])
    n = packed.shape[3] if turn else packed.shape[2]
    tiles = conv_tiles(height * width, k, n, x.itemsize)
    count = triton.cdiv(height * width, tiles.BLOCK_M)
    y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
    partial = torch.empty(2, heads * batch, count, n, dtype=torch.float32, device=x.device)
    epilogue = "statistics" if bias is not None else "activation" if activation is not None else "none"
    before, moments = activation or (None, None)
    convolve[(count * triton.cdiv(n, tiles.BLOCK_N), heads * batch)](
        x, packed, bias, x_moments, y, before, moments, partial, heads * batch, batch, height, width, *strides,
        K=k, N=n, TURN=turn, NORMALISE=x_moments is not None, EPILOGUE=epilogue, **asdict(tiles),
    )  # fmt: skip
    return y, partial, tiles.BLOCK_M


def _input_gradient(dy: Tensor, filters: Tensor, activation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Gradient by a convolution's input, through the ``activation`` (norm's input, moments) that made it if given."""
    dx, partial, _ = _convolve(dy, None, _pack(filters, dy), None, turn=True, activation=activation)
    return dx, partial


def _weight_gradient(x: Tensor, moments: Tensor | None, dy: Tensor) -> Tensor:
    heads, batch, height, width, k = x.shape
    n = dy.shape[-1]
    out = torch.empty(heads * n, k, 3, 3, dtype=torch.float32, device=x.device)
    tiles = weight_tiles(height * width, k, n, x.itemsize)
    grid = (9 * triton.cdiv(k, tiles.BLOCK_K) * triton.cdiv(n, tiles.BLOCK_N), heads)
    weight_gradient[grid](
        x, moments, dy, out, heads * batch, batch, height, width,
        K=k, N=n, NORMALISE=moments is not None, **asdict(tiles),
    )  # fmt: skip
    return out


def _logits_backward(gradient: Tensor, y: Tensor, moments: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient by the last norm's output, and partial sums: its own two and those of the logits' weights."""
    grid, images, _, positions, n = _pointwise(y)
    dn = torch.empty_like(y)
    partial = torch.empty(3, images, grid[0], n, dtype=torch.float32, device=y.device)
    logits_gradient[grid](
        gradient, y, moments, weight, dn, partial, images, positions,
        C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C),
    )  # fmt: skip
    return dn, partial


def _norm_backward(
    gradient: Tensor, partial: Tensor, y: Tensor, moments: Tensor, gamma: Tensor, groups: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``gradient`` by a norm's output turned, in place, into that by its input.

    Also returns those by the norm's scale and shift and by the convolution's bias before it, ``(G*C,)`` each.
    """
    grid, images, batch, positions, n = _pointwise(y)
    centre = torch.empty(2, images, n, dtype=torch.float32, device=y.device)
    parameters = torch.empty(3, images, n, dtype=torch.float32, device=y.device)
    finish_gradients[(images, groups)](
        partial, moments, gamma, centre, parameters, images, batch, positions, partial.shape[2],
        C=n, GROUP=n // groups, BLOCK_C=power(n // groups, 1, 1 << 20),
    )  # fmt: skip
    normalise_gradient[grid](
        gradient, y, moments, centre, images, positions,
        C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C),
    )  # fmt: skip
    return gradient, tuple(p.view(-1, batch, n).sum(1).flatten() for p in parameters)


def _pointwise(y: Tensor) -> tuple[tuple[int, int, int], int, int, int, int]:
    """Grid of the kernels between the convolutions, images, batch, positions and channels."""
    heads, batch, height, width, n = y.shape
    grid = (triton.cdiv(height * width, POINTWISE_M), heads * batch, triton.cdiv(n, power(n, 16, POINTWISE_C)))
    return grid, heads * batch, batch, height * width, n
