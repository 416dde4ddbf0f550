"""`joint_attention` as an operator that autograd, torch.compile and activation checkpointing know.

Saved for the backward pass: the six inputs, both outputs and the log2-sum-exp2, which is what flash attention saves
of one sequence; the norms' statistics are computed again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.attention import library, reference
from kernels.attention.streams import Norms, Streams, check, check_backward
from kernels.dispatch import resolve
from kernels.errors import KernelError
from kernels.operators import NAMESPACE, define, differentiate, refuse

_NAME = "joint_attention"
JOINT_ATTENTION = f"{NAMESPACE}::{_NAME}"
"""The operator's name as PyTorch's dispatcher has it; that of the backward pass begins with it."""


def joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    text_q: Tensor | None = None,
    text_k: Tensor | None = None,
    text_v: Tensor | None = None,
    *,
    norm_q: Tensor | None = None,
    norm_k: Tensor | None = None,
    text_norm_q: Tensor | None = None,
    text_norm_k: Tensor | None = None,
    eps: float = 1e-6,
    implementation: str = "auto",
    backward: str = "own",
) -> tuple[Tensor, Tensor | None]:
    """Attention over the joint sequence of image and text tokens, with QK RMSNorm per stream and no concatenation.

    ``softmax(norm(Q) norm(K)^T / sqrt(D)) V`` with Q, K, V the image's rows followed by the text's (SD3, Esser et al.
    2024, arXiv 2403.03206; the norms as in SD3.5). Queries, normalised and times the softmax scale, and keys are
    rounded to the inputs' dtype once; sums are fp32. Equal bits for equal inputs on one machine, both ways.

    Args:
        q: image queries ``(B, N, H, D)``, contiguous, N at least 1, D of 32, 64 or 128, in bf16, fp16 or fp32
            (float64 with the reference). A view of a projection's ``(B, N, H * D)`` is one.
        k: image keys, like ``q``.
        v: image values, like ``q``.
        text_q: text queries ``(B, L, H, D)``, L 0 or more; None for attention over the image alone.
        text_k: text keys, like ``text_q``.
        text_v: text values, like ``text_q``.
        norm_q: RMSNorm weight ``(D,)`` of the image queries, any floating dtype; None for no norm.
        norm_k: of the image keys; given exactly where ``norm_q`` is.
        text_norm_q: of the text queries.
        text_norm_k: of the text keys.
        eps: added to the mean square.
        implementation: see `kernels.dispatch`.
        backward: "own" for these kernels, or a library's attention on packed copies: "flash" (PyTorch's) or "cudnn"
            (on a GPU only). A library's bits may differ from run to run.

    Returns:
        Outputs ``(B, N, H, D)`` and ``(B, L, H, D)`` in the inputs' dtype; the second is None without text.

    Raises:
        KernelError: for tensors that do not fit together, or that no kernel is built for; the message says what fits.
        KernelUnavailable: if triton is asked for where it cannot run.
        RuntimeError: in a backward pass through the backward pass.
    """
    text = (text_q, text_k, text_v)
    if any(t is None for t in text) != all(t is None for t in text):
        raise KernelError("text_q, text_k and text_v go together: pass all three, or none")
    absent = text_q is None
    streams = Streams(q, k, v, *(q.new_empty(q.shape[0], 0, *q.shape[2:]) if t is None else t for t in text))
    norms = Norms(norm_q, norm_k, text_norm_q, text_norm_k)
    check(streams, norms)
    check_backward(backward, q)
    out, text_out, _ = _forward(*streams, *norms, eps, implementation, backward)
    return out, None if absent else text_out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, text_q: Tensor, text_k: Tensor, text_v: Tensor,
    norm_q: Tensor | None, norm_k: Tensor | None, text_norm_q: Tensor | None, text_norm_k: Tensor | None,
    eps: float, implementation: str, backward: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    streams, norms = Streams(q, k, v, text_q, text_k, text_v), Norms(norm_q, norm_k, text_norm_q, text_norm_k)
    if _choose(q, implementation) == "triton":
        from kernels.attention import launch  # late: it imports triton, which CPU users need not have

        return launch.forward(streams, norms, eps)
    return reference.forward(streams, norms, eps)


def _attended(q: Tensor, k: Tensor, v: Tensor, text_q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1] + text_q.shape[1], dtype=wide)
    return torch.empty_like(q), torch.empty_like(text_q), lse


def _gradients(
    d_out: Tensor, d_text_out: Tensor,
    q: Tensor, k: Tensor, v: Tensor, text_q: Tensor, text_k: Tensor, text_v: Tensor,
    norm_q: Tensor | None, norm_k: Tensor | None, text_norm_q: Tensor | None, text_norm_k: Tensor | None,
    out: Tensor, text_out: Tensor, lse: Tensor, eps: float, implementation: str, backward: str,
    weight_gradient: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the streams, and then of those norm weights that are given, if asked for."""
    streams, norms = Streams(q, k, v, text_q, text_k, text_v), Norms(norm_q, norm_k, text_norm_q, text_norm_k)
    saved = (d_out.contiguous(), d_text_out.contiguous(), streams, norms, (out, text_out), lse, eps)
    if _choose(q, implementation) == "triton":
        from kernels.attention import launch, packed

        if backward == "own":
            gradients, weights = launch.backward(*saved, weight_gradient)
        else:
            gradients, weights = packed.backward(*saved, weight_gradient, backward)
    elif backward != "own":
        gradients, weights = library.backward(*saved, backward)
    else:
        gradients, weights = reference.backward(*saved)
    return [*gradients, *(w for w in weights if w is not None and weight_gradient)]


def _fake_gradients(d_out: Tensor, d_text_out: Tensor, *args: Any) -> list[Tensor]:
    streams, norms, weight_gradient = args[:6], args[6:10], args[-1]
    given = [w for w in norms if w is not None and weight_gradient]
    return [torch.empty_like(x) for x in (*streams, *given)]


def _choose(q: Tensor, implementation: str) -> str:
    chosen = resolve(q.device, implementation).implementation
    if chosen == "triton" and q.dtype == torch.float64:
        raise KernelError("q is float64, which the kernel does not compute: pass implementation='reference'")
    return chosen


_forward = define(_NAME, _attend, _attended)
_backward = define(f"{_NAME}_backward", _gradients, _fake_gradients)


def _remember(ctx: Any, arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.settings = arguments[10:]
    ctx.save_for_backward(*arguments[:10], *results)
    ctx.mark_non_differentiable(results[2])


def _differentiate(ctx: Any, d_out: Tensor | None, d_text_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    saved: Sequence[Any] = ctx.saved_tensors
    norms, (out, text_out) = saved[6:10], saved[10:12]
    weight_gradient = any(ctx.needs_input_grad[6:10])
    d_out = torch.zeros_like(out) if d_out is None else d_out
    d_text_out = torch.zeros_like(text_out) if d_text_out is None else d_text_out
    gradients = iter(_backward(d_out, d_text_out, *saved, *ctx.settings, weight_gradient))
    streams = [next(gradients) for _ in range(6)]
    weights = [next(gradients) if weight_gradient and w is not None else None for w in norms]
    return *streams, *weights, None, None, None


differentiate(_forward, _remember, _differentiate)
refuse(
    _backward,
    lambda: RuntimeError(
        "joint_attention has no second derivative: take the penalty on the heads' inputs, behind the attention"
    ),
)
