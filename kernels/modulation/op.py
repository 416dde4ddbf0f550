"""`modulated_layer_norm` and `gated_residual`, registered with PyTorch."""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import choose, on
from kernels.errors import KernelError
from kernels.modulation import reference
from kernels.modulation.shipped import WIDEST

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def modulated_layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6, implementation: str = "auto"
) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift`` without affine parameters: adaLN's way into a block.

    Args:
        x: tokens ``(B, N, D)``, contiguous, fp32, fp16 or bf16, D at most 8192.
        scale: ``(B, D)`` in the dtype of ``x``, contiguous.
        shift: likewise.
        eps: added to the variance.
        implementation: "auto", "triton" or "reference".

    Returns:
        ``(B, N, D)``; differentiable once, by all three.

    Raises:
        KernelError: for arguments that do not fit, naming the argument and the remedy.
        KernelUnavailable: if Triton is asked for where it cannot run.
    """
    _check(x, scale=scale, shift=shift)
    return _norm(x, scale, shift, eps, implementation)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, implementation: str = "auto") -> Tensor:
    """``x + gate * y``: adaLN's way out of a block.

    Args and errors as `modulated_layer_norm`, with ``y`` like ``x`` and ``gate`` ``(B, D)``.
    """
    _check(x, gate=gate, y=y)
    return _residual(x, gate, y, implementation)


def _check(x: Tensor, **others: Tensor) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise KernelError(f"x has shape {tuple(x.shape)}: pass tokens (B, N, D), none of them 0")
    if x.dtype not in _DTYPES:
        raise KernelError(f"x is {x.dtype}: cast it to float32, float16 or bfloat16")
    if x.shape[2] > WIDEST:
        raise KernelError(f"x has {x.shape[2]} channels, more than {WIDEST}: use the reference in plain PyTorch")
    for name, tensor in {"x": x, **others}.items():
        shape = tuple(x.shape) if name in "xy" else (x.shape[0], x.shape[2])
        if tuple(tensor.shape) != shape:
            raise KernelError(f"{name} has shape {tuple(tensor.shape)}: x wants {shape}")
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise KernelError(f"{name} is {tensor.dtype} on {tensor.device}, x {x.dtype} on {x.device}: call .to(x)")
        if not tensor.is_contiguous():
            raise KernelError(f"{name} is not contiguous, strides {tensor.stride()}: call .contiguous()")


@torch.library.custom_op("ladd_kernels::modulated_layer_norm", mutates_args=())
def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, implementation: str) -> Tensor:
    if choose(x.device, implementation).implementation == "reference":
        return reference.modulated_layer_norm_reference(x, scale, shift, eps)
    from kernels.modulation import launch  # late: it imports triton, which CPU users need not have

    with on(x.device):
        return launch.norm_forward(x, scale, shift, eps)


@torch.library.custom_op("ladd_kernels::modulated_layer_norm_backward", mutates_args=())
def _norm_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, eps: float, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if choose(x.device, implementation).implementation == "reference":
        return reference.norm_gradients(gradient, x, scale, eps)
    from kernels.modulation import launch

    with on(x.device):
        return launch.norm_backward(gradient, x, scale, eps)


@torch.library.custom_op("ladd_kernels::gated_residual", mutates_args=())
def _residual(x: Tensor, gate: Tensor, y: Tensor, implementation: str) -> Tensor:
    if choose(x.device, implementation).implementation == "reference":
        return reference.gated_residual_reference(x, gate, y)
    from kernels.modulation import launch

    with on(x.device):
        return launch.residual_forward(x, gate, y)


@torch.library.custom_op("ladd_kernels::gated_residual_backward", mutates_args=())
def _residual_backward(gradient: Tensor, gate: Tensor, y: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    if choose(y.device, implementation).implementation == "reference":
        return reference.residual_gradients(gradient, gate, y)
    from kernels.modulation import launch

    with on(y.device):
        return launch.residual_backward(gradient, gate, y)


_norm.register_fake(lambda x, *_: torch.empty_like(x))
_norm_backward.register_fake(lambda gradient, x, scale, *_: tuple(torch.empty_like(t) for t in (x, scale, scale)))
_residual.register_fake(lambda x, *_: torch.empty_like(x))
_residual_backward.register_fake(lambda gradient, gate, y, _: (torch.empty_like(gate), torch.empty_like(y)))


def _remember_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, _, ctx.eps, ctx.implementation = inputs
    ctx.save_for_backward(x, scale)


def _differentiate_norm(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.implementation), None, None


def _remember_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, gate, y, ctx.implementation = inputs
    ctx.save_for_backward(gate, y)


def _differentiate_residual(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, *_residual_backward(gradient, *ctx.saved_tensors, ctx.implementation), None


def _refuse(ctx: Any, *_: Any) -> None:
    raise KernelError("this gradient cannot be differentiated again: use the reference in plain PyTorch for that")


_norm.register_autograd(_differentiate_norm, setup_context=_remember_norm)
_residual.register_autograd(_differentiate_residual, setup_context=_remember_residual)
_norm_backward.register_autograd(_refuse)
_residual_backward.register_autograd(_refuse)
