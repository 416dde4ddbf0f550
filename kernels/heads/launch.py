"""The Triton kernels in order: eight launches forward, fifteen backward, however many heads there are."""

from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import architecture, cdiv
from kernels.heads.convolution import convolve, pack_filters, unpack_filters, weight_gradient
from kernels.heads.pointwise import (
    activate,
    activation_sums,
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
    y1, moments1 = _layer(x, w.conv1, w.bias1, (w.gamma1, w.beta1), groups)
    y2, moments2 = _layer(_activated(y1, moments1), w.conv2, w.bias2, (w.gamma2, w.beta2), groups)
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
    dh2, partial2 = _logits_backward(gradient, y2, moments2, w.logit)
    dy2, (dgamma2, dbeta2, dbias2) = _norm_backward(dh2, partial2, y2, moments2, w.gamma2, groups)
    dh1, _, _ = _convolve(dy2, _pack(w.conv2, dy2), None)
    dy1, (dgamma1, dbeta1, dbias1) = _norm_backward(dh1, _sums(dh1, y1, moments1), y1, moments1, w.gamma1, groups)
    dx, _, _ = _convolve(dy1, _pack(w.conv1, dy1), None)
    if not by_weights:
        return (dx,)
    first = (filters_gradient(x, dy1), dbias1, dgamma1, dbeta1)
    second = (filters_gradient(_activated(y1, moments1), dy2), dbias2, dgamma2, dbeta2)
    return dx, *first, *second, partial2[2].sum(1).view_as(w.logit), gradient.sum((1, 2, 3))


def filters_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """By a convolution's filters, ``(heads*N, K, 3, 3)`` in fp32, for its input and its output's gradient."""
    heads, batch, height, width, k = x.shape
    n = dy.shape[-1]
    packed = torch.empty(heads, 9, n, k, dtype=torch.float32, device=x.device)
    tiles = weight_tiles(height * width, k, n, x.itemsize)
    grid = (9 * cdiv(k, tiles.BLOCK_K) * cdiv(n, tiles.BLOCK_N), heads)
    weight_gradient[grid](x, dy, packed, batch, height, width, K=k, N=n, **asdict(tiles))
    out = torch.empty(heads * n, k, 3, 3, dtype=torch.float32, device=x.device)
    block = power(k, 16, 128)
    unpack_filters[(heads * n, cdiv(k, block))](packed, out, K=k, N=n, BLOCK_K=block)
    return out


def _layer(
    x: Tensor, filters: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor], groups: int
) -> tuple[Tensor, Tensor]:
    """A convolution of ``x``, and the moments of its output."""
    y, partial, block = _convolve(x, _pack(filters, x), bias)
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
    pack_filters[(rows, cdiv(k, block))](filters, packed, K=k, N=rows // heads, BLOCK_K=block)
    return packed


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Output, its partial sums ``(2, I, T, N)`` and positions per tile. Without bias it is the input's gradient."""
    heads, batch, height, width, k = x.shape
    forward = bias is not None
    strides = (1, packed.shape[3]) if forward else (packed.shape[3], 1)
    n = packed.shape[2] if forward else packed.shape[3]
    tiles = conv_tiles(height * width, k, n, x.itemsize, forward, architecture(x.device))
    count = cdiv(height * width, tiles.BLOCK_M)
    y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
    partial = torch.empty(2, heads * batch, count if forward else 0, n, dtype=torch.float32, device=x.device)
    convolve[(count * cdiv(n, tiles.BLOCK_N), heads * batch)](
        x, packed, bias, y, partial, heads * batch, batch, height, width, *strides,
        K=k, N=n, FORWARD=forward, **asdict(tiles),
    )  # fmt: skip
    return y, partial, tiles.BLOCK_M


def _activated(y: Tensor, moments: Tensor) -> Tensor:
    """The second convolution's input: the first norm's output behind LeakyReLU."""
    grid, images, _, positions, n = _pointwise(y)
    out = torch.empty_like(y)
    activate[grid](y, moments, out, images, positions, C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C))
    return out


def _logits_backward(gradient: Tensor, y: Tensor, moments: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient by the last LeakyReLU's output, and partial sums: its own two and those of the logits' weights."""
    grid, images, _, positions, n = _pointwise(y)
    dh = torch.empty_like(y)
    partial = torch.empty(3, images, grid[0], n, dtype=torch.float32, device=y.device)
    logits_gradient[grid](
        gradient, y, moments, weight, dh, partial, images, positions,
        C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C),
    )  # fmt: skip
    return dh, partial


def _sums(dh: Tensor, y: Tensor, moments: Tensor) -> Tensor:
    """The partial sums that `_norm_backward` needs, of a gradient by LeakyReLU's output."""
    grid, images, _, positions, n = _pointwise(y)
    partial = torch.empty(2, images, grid[0], n, dtype=torch.float32, device=y.device)
    activation_sums[grid](
        dh, y, moments, partial, images, positions, C=n, BLOCK_M=POINTWISE_M, BLOCK_C=power(n, 16, POINTWISE_C)
    )
    return partial


def _norm_backward(
    gradient: Tensor, partial: Tensor, y: Tensor, moments: Tensor, gamma: Tensor, groups: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``gradient`` by LeakyReLU's output turned, in place, into that by the input of the norm before it.

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
    grid = (cdiv(height * width, POINTWISE_M), heads * batch, cdiv(n, power(n, 16, POINTWISE_C)))
    return grid, heads * batch, batch, height * width, n
