"""The conv heads in plain PyTorch, for every device and dtype: the definition of correct.

Shapes as PyTorch's convolutions have them: planes ``(B, G*K, H, W)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.heads.weights import HeadWeights

SLOPE = 0.2
"""Of LeakyReLU."""
EPS = 1e-5
"""Added to GroupNorm's variance."""


def grouped_heads_reference(x: Tensor, weights: HeadWeights, groups: int) -> Tensor:
    """Logits ``(G, B, H, W)`` in fp32 of projected tokens ``(G, B, H, W, K)``; differentiable any number of times.

    One grouped convolution per layer over all heads, in the dtype of ``x``; norms and logits in at least fp32. On a
    GPU convolutions get their input channels-last, which is where cuDNN is fast; on a CPU grouped convolutions are
    faster on planes (see docs/log.md).
    """
    return heads_forward(x, weights, groups).logits


class HeadsForward(NamedTuple):
    """What a forward pass makes: of each layer the norm's input and output, planes ``(B, G*K, H, W)`` in at least
    fp32, and the norm's moments, mean and inverse deviation of each group.
    """

    y1: Tensor
    n1: Tensor
    moments1: tuple[Tensor, Tensor]
    y2: Tensor
    n2: Tensor
    moments2: tuple[Tensor, Tensor]
    logits: Tensor


Convolve = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""A padded 3x3 convolution of planes, with filters and bias, in so many groups."""


def convolve(x: Tensor, filters: Tensor, bias: Tensor, heads: int) -> Tensor:
    """PyTorch's, differentiated by autograd."""
    return F.conv2d(x, filters, bias, padding=1, groups=heads)


def heads_forward(x: Tensor, weights: HeadWeights, groups: int, by: Convolve = convolve) -> HeadsForward:
    """See `grouped_heads_reference`; convolutions are done ``by`` that."""
    heads = x.shape[0]
    first, second = (tuple(weights)[i : i + 4] for i in (0, 4))
    y1 = _norm_input(_convolved(_planes(x), first, heads, by))
    n1, mean1, rstd1 = _normalised(y1, first, heads * groups)
    y2 = _norm_input(_convolved(F.leaky_relu(n1, SLOPE).to(x.dtype), second, heads, by))
    n2, mean2, rstd2 = _normalised(y2, second, heads * groups)
    h2_BGNP = F.leaky_relu(n2, SLOPE).flatten(2).unflatten(1, (heads, -1))
    # One row of weights for each head and sample over its planes: an einsum would copy them with their channels last.
    logits = (weights.logit.transpose(0, 1).unsqueeze(2) @ h2_BGNP).squeeze(2).transpose(0, 1)
    logits = (logits.unflatten(2, n2.shape[2:]) + weights.logit_bias.view(-1, 1, 1, 1)).contiguous()
    return HeadsForward(y1, n1, (mean1, rstd1), y2, n2, (mean2, rstd2), logits)


def reference_gradients(
    gradient: Tensor, x: Tensor, weights: HeadWeights, groups: int, by_weights: bool
) -> list[Tensor]:
    """Gradients of `grouped_heads_reference` by ``x`` and, if asked for, each of `HeadWeights`, without autograd.

    A registered operation runs below autograd, which can then not be asked for them.
    """
    heads, norms = x.shape[0], x.shape[0] * groups
    first, second = (tuple(weights)[i : i + 4] for i in (0, 4))
    planes = _planes(x)
    y1 = _convolved(planes, first, heads)
    n1, *moments1 = _normalised(y1, first, norms)
    h1 = F.leaky_relu(n1, SLOPE).to(x.dtype)
    y2 = _convolved(h1, second, heads)
    n2, *moments2 = _normalised(y2, second, norms)
    h2_BGNP = F.leaky_relu(n2, SLOPE).flatten(2).unflatten(1, (heads, -1))

    gradient_BG1P = gradient.flatten(2).transpose(0, 1).unsqueeze(2)
    dh2 = (weights.logit.transpose(0, 1).unsqueeze(3) @ gradient_BG1P).view_as(n2)
    dh1, *second_gradients = _layer_gradients(dh2, h1, y2, n2, moments2, second, heads, norms, by_weights)
    dplanes, *first_gradients = _layer_gradients(dh1, planes, y1, n1, moments1, first, heads, norms, by_weights)
    dx = dplanes.unflatten(1, (heads, -1)).permute(1, 0, 3, 4, 2).contiguous()
    if not by_weights:
        return [dx]
    dlogit = (gradient_BG1P @ h2_BGNP.mT).squeeze(2).transpose(0, 1)
    found = (*first_gradients, *second_gradients, dlogit, gradient.sum((1, 2, 3)))
    return [dx, *(g.to(w.dtype) for g, w in zip(found, weights, strict=True))]


def _planes(x: Tensor) -> Tensor:
    return _for_convolution(x.permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2))


def _for_convolution(planes: Tensor) -> Tensor:
    return planes.contiguous(memory_format=torch.channels_last if planes.is_cuda else torch.contiguous_format)


def _convolved(x: Tensor, layer: tuple[Tensor, ...], heads: int, by: Convolve = convolve) -> Tensor:
    return by(_for_convolution(x), layer[0].to(x.dtype), layer[1].to(x.dtype), heads)


def _normalised(y: Tensor, layer: tuple[Tensor, ...], norms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output of GroupNorm, and mean and rstd of its groups."""
    batch, channels, height, width = y.shape
    return torch.native_group_norm(_norm_input(y), layer[2], layer[3], batch, channels, height * width, norms, EPS)


def _layer_gradients(
    dh: Tensor,
    x: Tensor,
    y: Tensor,
    n: Tensor,
    moments: list[Tensor],
    layer: tuple[Tensor, ...],
    heads: int,
    norms: int,
    by_weights: bool,
) -> tuple[Tensor, ...]:
    """Gradients by a layer's input, filters, bias and norm parameters: ``h = leaky(n)``, ``n = norm(y)``."""
    batch, channels, height, width = y.shape
    mask = [True, by_weights, by_weights]
    dn = torch.where(n > 0, dh, dh * SLOPE).to(n.dtype).contiguous()
    dy, dgamma, dbeta = torch.ops.aten.native_group_norm_backward(
        dn, _norm_input(y), *moments, layer[2], batch, channels, height * width, norms, mask
    )
    dx, dfilters, dbias = torch.ops.aten.convolution_backward(
        dy.to(x.dtype), x, layer[0].to(x.dtype), [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], heads, mask
    )
    return dx, dfilters, dbias, dgamma, dbeta


def _norm_input(y: Tensor) -> Tensor:
    """In at least fp32, and contiguous: on a GPU `torch.native_group_norm` takes no channels-last input."""
    return (y.float() if y.dtype.itemsize < 4 else y).contiguous()
