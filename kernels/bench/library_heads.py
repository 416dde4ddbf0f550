"""The conv heads by library calls: what `kernels.grouped_heads` has to beat, and what CPU users would write."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.heads.reference import EPS, SLOPE
from kernels.heads.weights import HeadWeights


def looped_heads(x: Tensor, weights: HeadWeights, groups: int) -> Tensor:
    """One head after the other, each channels-last; everything in the dtype of ``x``.

    Args as `kernels.grouped_heads`; returns logits ``(G, B, H, W)``.
    """
    heads = x.shape[0]
    per_head = [w.to(x.dtype).unflatten(0, (heads, -1)) for w in weights[:8]]
    logits = []
    for head, image in enumerate(x.permute(0, 1, 4, 2, 3).unbind()):
        for filters, bias, gamma, beta in (per_head[:4], per_head[4:]):
            y = F.conv2d(image, filters[head], bias[head], padding=1)
            image = F.leaky_relu(F.group_norm(y, groups, gamma[head], beta[head], EPS), SLOPE)
        weight = weights.logit[head].to(x.dtype)
        logits.append(torch.einsum("bnhw,bn->bhw", image, weight) + weights.logit_bias[head])
    return torch.stack(logits).to(torch.promote_types(x.dtype, torch.float32))


def library_heads(x: Tensor, weights: HeadWeights, groups: int) -> Tensor:
    """One grouped convolution per layer over all heads, channels-last; everything in the dtype of ``x``."""
    heads = x.shape[0]
    image = x.permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2)
    cast = [w.to(x.dtype) for w in weights[:9]]
    for filters, bias, gamma, beta in (cast[:4], cast[4:8]):
        y = F.conv2d(image, filters, bias, padding=1, groups=heads)
        image = F.leaky_relu(F.group_norm(y, heads * groups, gamma, beta, EPS), SLOPE)
    logits = torch.einsum("bgnhw,gbn->gbhw", image.unflatten(1, (heads, -1)), cast[8])
    return logits.to(torch.promote_types(x.dtype, torch.float32)) + weights.logit_bias.view(-1, 1, 1, 1)
