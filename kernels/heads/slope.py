"""The heads' logits with their gradient by the tokens, as operations that can be differentiated once more.

R1 needs the gradient of that gradient. Autograd's own takes GroupNorm's apart into some forty passes over the planes
and a convolution's into a loop over groups; both have a closed form, whose parts PyTorch has kernels for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.dispatch import resolve
from kernels.heads.op import grouped_filters_gradient
from kernels.heads.reference import SLOPE, convolve, heads_forward
from kernels.heads.weights import HeadWeights


def grouped_heads_slope(
    x: Tensor, weights: HeadWeights, groups: int, implementation: str = "reference"
) -> tuple[Tensor, Tensor]:
    """`grouped_heads_reference`, and how each sample's logits grow, all positions together, with its tokens.

    Args:
        x: projected tokens ``(G, B, H, W, K)``.
        implementation: of the gradients by filters, "auto", "triton" or "reference"; the rest is PyTorch's. By cuDNN
            they took 80 of the 885 ms for which a sample of SD3.5 Large kept an H200 busy (docs/log.md).

    Returns:
        Logits ``(G, B, H, W)`` in fp32, and the gradient of their sum by ``x``, in its dtype; both are differentiable
        once.

    Raises:
        KernelUnavailable: if Triton is asked for where it cannot run.
    """
    heads, norms = x.shape[0], x.shape[0] * groups
    own = resolve(x.device, implementation).implementation == "triton"
    done = heads_forward(x, weights, groups, _OwnConvolution.apply if own else convolve)
    by_filters = _own_by_filters if own else _by_filters
    logit_BC = weights.logit.transpose(0, 1).flatten(1)
    dh2 = logit_BC[..., None, None].expand_as(done.n2)
    dy2 = _NormSlope.apply(_leaky_slope(dh2, done.n2), done.y2, weights.gamma2, *done.moments2, norms)
    dh1 = _ConvolutionSlope.apply(dy2.to(x.dtype), weights.conv2.to(x.dtype), heads, by_filters)
    dy1 = _NormSlope.apply(_leaky_slope(dh1, done.n1), done.y1, weights.gamma1, *done.moments1, norms)
    dplanes = _ConvolutionSlope.apply(dy1.to(x.dtype), weights.conv1.to(x.dtype), heads, by_filters)
    return done.logits, dplanes.unflatten(1, (heads, -1)).permute(1, 0, 3, 4, 2)


def _leaky_slope(dh: Tensor, n: Tensor) -> Tensor:
    """LeakyReLU's: constant but where ``n`` is 0."""
    return torch.ops.aten.leaky_relu_backward(dh.to(n.dtype), n.detach(), SLOPE, False)


class _ConvolutionSlope(torch.autograd.Function):
    """Gradient of a 3x3 convolution by its input: linear in what comes from above and in the filters."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, filters: Tensor, heads: int, by_filters: "_ByFilters") -> Tensor:
        ctx.save_for_backward(dy, filters)
        ctx.heads, ctx.by_filters = heads, by_filters
        return _by_input(dy, filters, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        dy, filters = ctx.saved_tensors
        v = v.contiguous(memory_format=torch.channels_last if v.is_cuda else torch.contiguous_format)
        ddy = F.conv2d(v, filters, padding=1, groups=ctx.heads)
        return ddy, ctx.by_filters(dy, v, filters, ctx.heads), None, None


class _OwnConvolution(torch.autograd.Function):
    """A 3x3 convolution with this repository's kernel for the filters' gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(x, filters)
        ctx.heads = heads
        return convolve(x, filters, bias, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, filters = ctx.saved_tensors
        dx = _by_input(dy, filters, ctx.heads) if ctx.needs_input_grad[0] else None
        return dx, _own_by_filters(dy, x, filters, ctx.heads), dy.sum((0, 2, 3)), None


def _by_input(dy: Tensor, filters: Tensor, heads: int) -> Tensor:
    """Gradient of a convolution by its input, for that of its output."""
    shape = (len(dy), filters.shape[1] * heads, *dy.shape[2:])
    dx, _, _ = _convolution_backward(dy, dy.new_empty(1).expand(shape), filters, heads, [True, False, False])
    return dx


_ByFilters = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Gradient of a convolution by its filters, for that of its output; also takes the input, the filters and heads."""


def _by_filters(dy: Tensor, x: Tensor, filters: Tensor, heads: int) -> Tensor:
    _, found, _ = _convolution_backward(dy, x, filters, heads, [False, True, False])
    return found


def _own_by_filters(dy: Tensor, x: Tensor, filters: Tensor, heads: int) -> Tensor:
    def tokens(planes: Tensor) -> Tensor:
        return planes.unflatten(1, (heads, -1)).permute(1, 0, 3, 4, 2).contiguous()

    found: Tensor = grouped_filters_gradient(tokens(x), tokens(dy))
    return found.to(filters.dtype)


def _convolution_backward(dy: Tensor, x: Tensor, filters: Tensor, heads: int, mask: list[bool]) -> tuple[Tensor, ...]:
    ones = [1, 1]
    return torch.ops.aten.convolution_backward(dy, x, filters, None, ones, ones, ones, False, [0, 0], heads, mask)


class _NormSlope(torch.autograd.Function):
    """Gradient of GroupNorm by its input ``y``, for the gradient ``dn`` of its output.

    Within a group, with mean m, inverse deviation r, ``x = (y - m) r``, ``g = gamma dn`` and ``<.>`` the mean:

        P(g) = g - <g> - x <g x>;    dy = r P(g)

    P is symmetric, so for the gradient v of dy:

        by g:  r P(v);    by y:  -r (<g x> r P(v) + <v x> dy + r <v dy> (y - m))
    """

    @staticmethod
    def forward(ctx: Any, dn: Tensor, y: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, norms: int) -> Tensor:
        dy = _norm_backward(dn, y, mean, rstd, gamma, norms)
        ctx.save_for_backward(dn, y, gamma, mean, rstd, dy)
        ctx.norms = norms
        return dy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        dn, y, gamma, mean, rstd, dy = ctx.saved_tensors
        v, gamma = v.contiguous(), gamma.view(1, -1, 1, 1)
        back = _norm_backward(v, y, mean, rstd, None, ctx.norms)

        def rows(planes: Tensor) -> Tensor:
            return planes.reshape(mean.numel(), -1)

        m, r = mean.view(-1, 1), rstd.view(-1, 1)
        centred = rows(y) - m
        g_x, v_x = (_mean_product(rows(a), centred) * r for a in (dn * gamma, v))
        v_dy = _mean_product(rows(v), rows(dy))
        by_y = centred.mul_(r * v_dy).addcmul_(rows(back), g_x).addcmul_(rows(dy), v_x).mul_(-r)
        by_gamma = (dn * back).sum((0, 2, 3))
        return back.mul_(gamma), by_y.view_as(y), by_gamma, None, None, None


def _norm_backward(dn: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, norms: int) -> Tensor:
    batch, channels, height, width = y.shape
    shape, mask = (batch, channels, height * width, norms), [True, False, False]
    return torch.ops.aten.native_group_norm_backward(dn.contiguous(), y, mean, rstd, gamma, *shape, mask)[0]


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the products of each row, ``(rows, 1)``, without an array of them."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).squeeze(2) / a.shape[1]
