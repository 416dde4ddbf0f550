"""Linear layers in float8: products of 8 bits by the tensor cores, forward and for the input's gradient.

One scale per row, as torchao's rowwise recipe has it: of a weight per output channel, of activations and gradients
per token, from their largest magnitude. torchao's own layers do not do here for a frozen network: that for training
keeps the weight in 16 bits, and inputs for a weight gradient that a frozen layer has no use for; that for inference
has no gradient. A layer that is trained keeps both, and its weight's gradient is a product of 16 bits, as in
torchao's ``rowwise_with_gw_hp``: it sums over tokens, which have no common scale.
"""

from typing import Any, Literal

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
    """What a frozen ``linear`` computes, within the rounding of 8 bits, in bf16; its weight is kept in 8 bits.

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
        return _affine(_Product, x, self.bias, self.weight, self.scale)


class TrainedFloat8Linear(nn.Linear):
    """What a trained ``linear`` computes, within the rounding of 8 bits, in bf16.

    It has the parameters themselves, by their names; codes are made of the weight for each product.

    Args:
        linear: its weight is ``(out, in)``, both multiples of 16; it is not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # not a linear layer's, which would draw a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, bf16."""
        return _affine(_TrainedProduct, x, self.bias, self.weight)


class _Product(torch.autograd.Function):
    """``x @ (codes * scale).T`` for ``x (M, K)``, ``codes (N, K)`` and ``scale (N, 1)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return _product(x, codes, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _input_gradient(gradients[0], *ctx.saved_tensors), None, None


class _TrainedProduct(torch.autograd.Function):
    """``x @ weight.T`` for ``x (M, K)`` in bf16 and ``weight (N, K)``; both are kept, codes of neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, *quantize_rows(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        by_input, by_weight = ctx.needs_input_grad
        return (
            _input_gradient(g, *quantize_rows(weight)) if by_input else None,
            (g.t() @ x).to(weight.dtype) if by_weight else None,
        )


def _affine(product: type[torch.autograd.Function], x: Tensor, bias: Tensor | None, *weight: Tensor) -> Tensor:
    """``product`` of the rows of ``x (..., in)`` with a weight, and the bias: ``(..., out)`` in bf16."""
    out: Tensor = product.apply(x.to(torch.bfloat16).reshape(-1, x.shape[-1]), *weight)
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias.to(out.dtype)


def _product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    rows, row_scale = quantize_rows(x)
    return torch._scaled_mm(rows, codes.t(), row_scale, scale.t(), out_dtype=x.dtype)


def _input_gradient(g: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``(g * scale) @ codes``: the weight's scales lie along the summed dimension, so the gradient takes them."""
    rows, row_scale = quantize_rows(g * scale.t())
    columns = codes.t().contiguous().t()  # the product wants its second operand with contiguous columns
    one = torch.ones(1, codes.shape[1], device=codes.device)
    return torch._scaled_mm(rows, columns, row_scale, one, out_dtype=g.dtype)


def to_float8(network: nn.Module, names: list[str], of: Literal["teacher", "student"]) -> None:
    """Put a float8 layer in the place of each named linear layer, one after the other.

    Args:
        of: whose they are: a teacher's are frozen and held in 8 bits, a student's are trained.

    Raises:
        LaddError: if there is none, or one is of a width that the products do not take.
    """
    if not names:
        raise LaddError(f"{of}.float8=true, but this kind of {of} has no layers for it: set {of}.float8=false")
    kind = Float8Linear if of == "teacher" else TrainedFloat8Linear
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = linear(network, name)
        if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
            widths = f"{layer.in_features} to {layer.out_features}"
            raise LaddError(f"{of}.float8=true takes widths in multiples of {_MULTIPLE}, but {name} is {widths}")
        setattr(network.get_submodule(parent), own, kind(layer))


def saved_bytes(network: nn.Module, names: list[str], itemsize: int) -> int:
    """How many bytes fewer those layers take, frozen, than with weights of ``itemsize``."""
    weights = [linear(network, name).weight for name in names]
    return sum(w.numel() * (itemsize - _CODES.itemsize) - w.shape[0] * _SCALES.itemsize for w in weights)


def linear(network: nn.Module, name: str) -> nn.Linear:
    """A layer by its name."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
