"""`hinge_per_head`, registered with PyTorch as ``ladd_kernels::hinge`` and ``ladd_kernels::hinge_backward``."""

from typing import Any, get_args

import torch
from torch import Tensor

from kernels.dispatch import on, resolve
from kernels.errors import KernelError
from kernels.hinge.reference import HingePerHead, Role, hinge_reference, reference_gradient
from kernels.operators import define, differentiate, refuse


def hinge_per_head(logits: Tensor, role: Role, implementation: str = "auto") -> HingePerHead:
    """Mean hinge loss, mean logit and accuracy of every head, the same bits in every run.

    Args:
        logits: ``(G, B, H, W)``, fp32 and contiguous.
        role: which loss: the discriminator's on "real" or "fake" logits, or the "generator"'s (``-x``, not hinged).
        implementation: "auto", "triton" or "reference".

    Raises:
        KernelError: for arguments that do not fit, naming the argument and the remedy.
        KernelUnavailable: if Triton is asked for where it cannot run.
    """
    if role not in get_args(Role):
        raise KernelError(f"role={role!r} is unknown: choose one of {', '.join(get_args(Role))}")
    if logits.dim() != 4 or 0 in logits.shape:
        raise KernelError(f"logits have shape {tuple(logits.shape)}: pass (heads, batch, H, W), none of them 0")
    if logits.dtype != torch.float32:
        raise KernelError(f"logits are {logits.dtype}: call .float()")
    if not logits.is_contiguous():
        raise KernelError(f"logits are not contiguous, strides {logits.stride()}: call .contiguous()")
    loss, statistics = _hinge(logits, role, implementation)
    return HingePerHead(loss, *statistics)


def _losses(logits: Tensor, role: str, implementation: str) -> tuple[Tensor, Tensor]:
    """Losses ``(G,)``; mean logits and accuracies ``(2, G)``."""
    if resolve(logits.device, implementation).implementation == "reference":
        result = hinge_reference(logits, role)  # type: ignore[arg-type]
        return result.loss, torch.stack(result[1:])
    from kernels.hinge import launch  # late: it imports triton, which CPU users need not have

    with on(logits.device):
        means = launch.forward(logits, role)
    return means[0].clone(), means[1:].clone()  # results of an operation must not share memory


def _fake_losses(logits: Tensor, role: str, implementation: str) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0]), logits.new_empty(2, logits.shape[0])


def _gradient(gradient: Tensor, logits: Tensor, role: str, implementation: str) -> Tensor:
    if resolve(logits.device, implementation).implementation == "reference":
        return reference_gradient(gradient, logits, role)  # type: ignore[arg-type]
    from kernels.hinge import launch

    with on(logits.device):
        return launch.backward(gradient, logits, role)


def _fake_gradient(gradient: Tensor, logits: Tensor, role: str, implementation: str) -> Tensor:
    return torch.empty_like(logits)


_hinge = define("hinge", _losses, _fake_losses)
_hinge_backward = define("hinge_backward", _gradient, _fake_gradient)


def _remember(ctx: Any, arguments: tuple[Tensor, str, str], results: tuple[Tensor, Tensor]) -> None:
    logits, ctx.role, ctx.implementation = arguments
    ctx.save_for_backward(logits)
    ctx.mark_non_differentiable(results[1])


def _differentiate(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if gradient is None:
        return None, None, None
    (logits,) = ctx.saved_tensors
    return _hinge_backward(gradient, logits, ctx.role, ctx.implementation), None, None


differentiate(_hinge, _remember, _differentiate)
refuse(
    _hinge_backward,
    lambda: KernelError("the gradient of hinge_per_head cannot be differentiated again: use plain PyTorch for that"),
)
