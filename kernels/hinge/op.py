"""`hinge_per_head`, registered with PyTorch as ``ladd_kernels::hinge`` and ``ladd_kernels::hinge_backward``."""

from typing import Any, get_args

import torch
from torch import Tensor

from kernels.dispatch import on, resolve
from kernels.errors import KernelError
from kernels.hinge.reference import HingePerHead, Role, hinge_reference, reference_gradient


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


@torch.library.custom_op("ladd_kernels::hinge", mutates_args=())
def _hinge(logits: Tensor, role: str, implementation: str) -> tuple[Tensor, Tensor]:
    """Losses ``(G,)``; mean logits and accuracies ``(2, G)``."""
    if resolve(logits.device, implementation).implementation == "reference":
        result = hinge_reference(logits, role)  # type: ignore[arg-type]
        return result.loss, torch.stack(result[1:])
    from kernels.hinge import launch  # late: it imports triton, which CPU users need not have

    with on(logits.device):
        means = launch.forward(logits, role)
    return means[0].clone(), means[1:].clone()  # results of an operation must not share memory


@_hinge.register_fake
def _(logits: Tensor, role: str, implementation: str) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0]), logits.new_empty(2, logits.shape[0])


@torch.library.custom_op("ladd_kernels::hinge_backward", mutates_args=())
def _hinge_backward(gradient: Tensor, logits: Tensor, role: str, implementation: str) -> Tensor:
    if resolve(logits.device, implementation).implementation == "reference":
        return reference_gradient(gradient, logits, role)  # type: ignore[arg-type]
    from kernels.hinge import launch

    with on(logits.device):
        return launch.backward(gradient, logits, role)


@_hinge_backward.register_fake
def _(gradient: Tensor, logits: Tensor, role: str, implementation: str) -> Tensor:
    return torch.empty_like(logits)


def _remember(ctx: Any, inputs: tuple[Tensor, str, str], output: tuple[Tensor, Tensor]) -> None:
    logits, ctx.role, ctx.implementation = inputs
    ctx.save_for_backward(logits)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return _hinge_backward(gradient, logits, ctx.role, ctx.implementation), None, None


def _refuse(ctx: Any, *_: Any) -> None:
    raise KernelError("the gradient of hinge_per_head cannot be differentiated again: use plain PyTorch for that")


_hinge.register_autograd(_differentiate, setup_context=_remember)
_hinge_backward.register_autograd(_refuse)
