"""`grouped_heads`, registered with PyTorch: all conv heads of the discriminator as one differentiable operation.

What the forward pass saves for the backward pass is among the results of ``ladd_kernels::grouped_heads``.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import on, resolve
from kernels.errors import KernelError
from kernels.heads.reference import grouped_heads_reference, reference_gradients
from kernels.heads.weights import HeadWeights, check
from kernels.operators import define, differentiate, refuse

_TWICE = (
    "the gradient of grouped_heads cannot be differentiated again: for a penalty on gradients, such as R1, use the "
    "reference (kernels.grouped_heads_reference; in the trainer the torch path, which R1 passes take by themselves)"
)


def grouped_heads(x: Tensor, weights: HeadWeights, groups: int, implementation: str = "auto") -> Tensor:
    """Judge projected tokens with every head at once.

    Per head: 3x3 convolution, GroupNorm, LeakyReLU (0.2), the same again, and a 1x1 convolution to one logit per
    position whose weights are each sample's own, since they carry noise level and text. Results do not change from
    run to run.

    Args:
        x: projected tokens ``(G, B, H, W, K)``, contiguous, fp32, fp16 or bf16, which is the compute dtype. Any
            grid; K and N are multiples of 16.
        weights: see `HeadWeights`; fp32.
        groups: GroupNorm groups of each head; divides K and N.
        implementation: "auto", "triton" or "reference".

    Returns:
        Logits ``(G, B, H, W)`` in fp32; differentiable once, by ``x`` and all of ``weights``.

    Raises:
        KernelError: for arguments that do not fit, naming the argument and the remedy.
        KernelUnavailable: if Triton is asked for where it cannot run.
    """
    check(x, weights, groups)
    return _forward(x, *weights, groups, implementation)[0]


def _judge(
    x: Tensor,
    conv1: Tensor,
    bias1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
    logit: Tensor,
    logit_bias: Tensor,
    groups: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits and what the backward pass needs; for the reference, which starts anew, the latter is empty."""
    weights = HeadWeights(conv1, bias1, gamma1, beta1, conv2, bias2, gamma2, beta2, logit, logit_bias)
    if resolve(x.device, implementation).implementation == "reference":
        return grouped_heads_reference(x, weights, groups), *_nothing(x)
    from kernels.heads import launch  # late: it imports triton, which CPU users need not have

    with on(x.device):
        logits, saved = launch.forward(x, weights, groups)
    return logits, *saved


def _nothing(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the reference saves; four tensors, since results must not share memory."""
    return x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0)


def _judged(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *weights, _, implementation = rest
    logits = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if resolve(x.device, implementation).implementation == "reference":
        return logits, *_nothing(x)
    heads, batch, *grid, k = x.shape
    y2 = x.new_empty(heads, batch, *grid, HeadWeights(*weights).logit.shape[2])
    moments = (logits.new_empty(5, heads * batch, width) for width in (k, y2.shape[4]))
    return logits, torch.empty_like(x), y2, *moments


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    groups: int,
    by_weights: bool,
) -> list[Tensor]:
    """Gradients by ``x`` and, if asked for, each of `HeadWeights`, by the implementation that went forward."""
    if saved[0].numel() == 0:  # as the reference's forward pass saves it
        return reference_gradients(gradient, x, HeadWeights(*weights), groups, by_weights)
    from kernels.heads import launch

    with on(x.device):
        return list(launch.backward(gradient, x, HeadWeights(*weights), groups, launch.Saved(*saved), by_weights))


def _fake_gradients(gradient: Tensor, x: Tensor, weights: list[Tensor], *rest: Any) -> list[Tensor]:
    by_weights = rest[-1]
    return [torch.empty_like(t) for t in (x, *(weights if by_weights else ()))]


_forward = define("grouped_heads", _judge, _judged)
_backward = define("grouped_heads_backward", _gradients, _fake_gradients)


def _remember(ctx: Any, arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    x, *weights, ctx.groups, _ = arguments
    ctx.save_for_backward(x, *weights, *results[1:])
    ctx.mark_non_differentiable(*results[1:])


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    count = 1 + len(HeadWeights._fields)
    if gradient is None:
        return (None,) * (count + 2)
    x, *rest = ctx.saved_tensors
    weights, saved = rest[: count - 1], rest[count - 1 :]
    by_weights = any(ctx.needs_input_grad[1:count])
    found = _backward(gradient, x, weights, saved, ctx.groups, by_weights)
    return *found, *(None for _ in range(count - len(found))), None, None


differentiate(_forward, _remember, _differentiate)
refuse(_backward, lambda: KernelError(_TWICE))


def grouped_filters_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient of a padded 3x3 convolution of each head by its filters, by the Triton kernel.

    Args:
        x: the convolutions' input ``(G, B, H, W, K)``, contiguous, fp32, fp16 or bf16.
        dy: their output's gradient ``(G, B, H, W, N)``, likewise.

    Returns:
        ``(G*N, K, 3, 3)`` in fp32; not differentiable.
    """
    found: Tensor = _filters(x, dy)
    return found


def _filters_gradient(x: Tensor, dy: Tensor) -> Tensor:
    from kernels.heads import launch

    with on(x.device):
        return launch.filters_gradient(x, dy)


def _fake_filters_gradient(x: Tensor, dy: Tensor) -> Tensor:
    return x.new_empty(x.shape[0] * dy.shape[4], x.shape[4], 3, 3, dtype=torch.float32)


_filters = define("grouped_filters_gradient", _filters_gradient, _fake_filters_gradient)
refuse(_filters, lambda: KernelError("grouped_filters_gradient cannot be differentiated: take the reference"))
