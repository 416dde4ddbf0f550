"""Frozen linear layers in float8: weights kept in 8 bits, products of 8 bits by the tensor cores, forward and back.

One scale per row, as torchao's rowwise recipe has it: of a weight per output channel, of activations and gradients
per token, from their largest magnitude. torchao's own layers do not do here. That for training keeps the weight in 16
bits and the inputs for a weight gradient that a frozen layer has no use for; that for inference has no gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ladd_dist.errors import LaddError

_CODES, _SCALES = torch.float8_e4m3fn, torch.float32
_MAX = torch.finfo(_CODES).max
_TINY = 1e-12
"""The least magnitude that a scale is made of, as torchao's: rows of zeros stay zeros."""
_MULTIPLE = 16
"""Of both widths of a layer: what the tensor cores' products take."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``(M, K)`` (e4m3) and scales ``(M, 1)`` (fp32) of a matrix; their product is near it."""
    scale = x.abs().amax(-1, keepdim=True).to(_SCALES).clamp(min=_TINY) / _MAX
    return (x.float() / scale).clamp(-_MAX, _MAX).to(_CODES), scale


class Float8Linear(nn.Module):
    """What ``linear`` computes, within the rounding of 8 bits, in bf16; it has a gradient by its input alone.

    Args:
        linear: its weight is ``(out, in)``, both multiples of 16; it is not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes, scale = quantize_rows(linear.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, bf16."""
        rows = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
        out: Tensor = _Product.apply(rows, self.weight, self.scale)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """``x @ (codes * scale).T`` for ``x (M, K)``, ``codes (N, K)`` and ``scale (N, 1)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        rows, row_scale = quantize_rows(x)
        return torch._scaled_mm(rows, codes.t(), row_scale, scale.t(), out_dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """``(g * scale) @ codes``: the weight's scales lie along the summed dimension, so the gradient takes them."""
        codes, scale = ctx.saved_tensors
        rows, row_scale = quantize_rows(gradients[0] * scale.t())
        columns = codes.t().contiguous().t()  # the product wants its second operand with contiguous columns
        one = torch.ones(1, codes.shape[1], device=codes.device)
        return torch._scaled_mm(rows, columns, row_scale, one, out_dtype=gradients[0].dtype), None, None


def to_float8(network: nn.Module, names: list[str]) -> None:
    """Put a `Float8Linear` in the place of each named linear layer, one after the other.

    Raises:
        LaddError: if there is none, or one is of a width that the products do not take.
    """
    if not names:
        raise LaddError(
            "teacher.float8=true, but this kind of teacher has no layers for it: set teacher.float8=false"
        )
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Float8Linear(_linear(network, name)))


def saved_bytes(network: nn.Module, names: list[str], itemsize: int) -> int:
    """How many bytes fewer those layers take than with weights of ``itemsize``."""
    weights = [_linear(network, name).weight for name in names]
    return sum(w.numel() * (itemsize - _CODES.itemsize) - w.shape[0] * _SCALES.itemsize for w in weights)


def _linear(network: nn.Module, name: str) -> nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
        widths = f"{layer.in_features} to {layer.out_features}"
        raise LaddError(f"teacher.float8=true takes widths in multiples of {_MULTIPLE}, but {name} is {widths}")
    return layer
