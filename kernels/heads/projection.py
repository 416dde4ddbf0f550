"""Projection of many blocks' tokens, each by its own matrix, into the one buffer that the heads read."""

from typing import Any

import torch
from torch import Tensor

from kernels.errors import KernelError


class _Project(torch.autograd.Function):
    """Written by hand because autograd would want the features stacked first: a second copy of all of them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *features)
        heads, width, narrow = weight.shape
        out = features[0].new_empty(heads, *features[0].shape[:2], narrow)
        for slot, w, b, x in zip(out, weight.to(out.dtype), bias.to(out.dtype), features, strict=True):
            torch.addmm(b, x.reshape(-1, width), w, out=slot.view(-1, narrow))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of differentiable operations, so that R1 can differentiate it again."""
        (gradient,) = gradients
        weight, *features = ctx.saved_tensors
        dweight = dbias = None
        if ctx.needs_input_grad[0]:
            pairs = zip(features, gradient, strict=True)
            dweight = torch.stack([x.flatten(0, 1).mT @ g.flatten(0, 1) for x, g in pairs]).to(weight.dtype)
            dbias = gradient.sum((1, 2), dtype=weight.dtype).unsqueeze(1)
        if not any(ctx.needs_input_grad[2:]):
            return dweight, dbias, *(None for _ in features)
        return dweight, dbias, *(g @ w.mT for g, w in zip(gradient, weight.to(gradient.dtype), strict=True))


def project_tokens(features: list[Tensor], weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``features[g] @ weight[g] + bias[g]`` for every head g, written into one buffer.

    Args:
        features: one ``(B, N, D)`` per head.
        weight: ``(G, D, K)``.
        bias: ``(G, 1, K)``.
        dtype: compute precision.

    Returns:
        ``(G, B, N, K)`` in ``dtype``, contiguous; differentiable twice.

    Raises:
        KernelError: if features and weights do not fit, naming what does not.
    """
    want = (len(features), features[0].shape[-1], weight.shape[-1])
    if tuple(weight.shape) != want or tuple(bias.shape) != (want[0], 1, want[2]):
        shapes = f"weight has shape {tuple(weight.shape)} and bias {tuple(bias.shape)}"
        raise KernelError(f"{shapes}: {want[0]} features of width {want[1]} want {want} and {(want[0], 1, want[2])}")
    if len({f.shape for f in features}) > 1:
        raise KernelError("features differ in shape: pass blocks of one network, or project them one by one")
    with torch.autocast(weight.device.type, enabled=False):
        return _Project.apply(weight, bias, *(f.to(dtype) for f in features))
