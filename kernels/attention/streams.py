"""The tensors of joint attention by name, and the checks of its arguments.

Legend: B batch, N image tokens, L text tokens (may be 0), H heads, D head_dim, T = N + L.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention.configs import ATTENTION_HEAD_DIMS
from kernels.errors import KernelError

ACCEPTED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Dtypes of the streams; float64 runs on the reference only."""
BACKWARDS = ("own", "flash", "cudnn")
"""What computes the backward pass: these kernels, PyTorch's flash attention or cuDNN's."""


class Streams(NamedTuple):
    """Image tensors ``(B, N, H, D)`` and text tensors ``(B, L, H, D)``, or their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    text_q: Tensor
    text_k: Tensor
    text_v: Tensor


class Norms(NamedTuple):
    """RMSNorm weights ``(D,)``, or their gradients; None for a stream without norm."""

    q: Tensor | None
    k: Tensor | None
    text_q: Tensor | None
    text_k: Tensor | None


def check(x: Streams, norms: Norms) -> None:
    """Check shapes, dtypes, devices and layout of all tensors.

    Raises:
        KernelError: naming the argument at fault and what would be right.
    """
    _check_layout(x)
    q = x.q
    if q.shape[1] == 0:
        raise KernelError("q has no tokens: pass at least one image token")
    for name, tensor in x._asdict().items():
        wanted = (x.text_q if name.startswith("text") else q).shape
        if tensor.shape != wanted:
            other = "text_q" if name.startswith("text") else "q"
            raise KernelError(
                f"{name} has shape {tuple(tensor.shape)}, but {other} has {tuple(wanted)}: make them equal"
            )
    if (x.text_q.shape[0], *x.text_q.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise KernelError(
            f"text_q has shape {tuple(x.text_q.shape)} and q {tuple(q.shape)}: batch, heads and head_dim must agree"
        )
    _check_norms(x, norms)


def check_backward(name: str, q: Tensor) -> None:
    """Check that the backward pass is a known one and runs on the device of ``q``.

    Raises:
        KernelError: saying which can.
    """
    if name not in BACKWARDS:
        raise KernelError(f"backward={name!r} is unknown: choose one of {', '.join(BACKWARDS)}")
    if name == "cudnn" and q.device.type != "cuda":
        raise KernelError(f"backward='cudnn' needs a GPU, but q is on {q.device}: pass 'own' or 'flash'")


def _check_layout(x: Streams) -> None:
    q = x.q
    for name, tensor in x._asdict().items():
        if tensor.ndim != 4:
            raise KernelError(f"{name} has {tensor.ndim} dimensions: pass (batch, tokens, heads, head_dim)")
        if tensor.dtype != q.dtype or tensor.dtype not in ACCEPTED:
            raise KernelError(f"{name} is {tensor.dtype} and q {q.dtype}: pass all in bf16, fp16 or fp32")
        if tensor.device != q.device:
            raise KernelError(f"{name} is on {tensor.device}, but q on {q.device}: move them to one device")
        if not tensor.is_contiguous():
            raise KernelError(
                f"{name} is not contiguous in (batch, tokens, heads, head_dim): call .contiguous() first"
            )
    if q.shape[3] not in ATTENTION_HEAD_DIMS:
        raise KernelError(f"head_dim is {q.shape[3]}: only {', '.join(map(str, ATTENTION_HEAD_DIMS))} are built")


def _check_norms(x: Streams, norms: Norms) -> None:
    for name, weight in norms._asdict().items():
        if weight is None:
            continue
        if weight.shape != x.q.shape[3:] or not weight.is_contiguous():
            raise KernelError(
                f"the norm of {name} has weights {tuple(weight.shape)}: pass ({x.q.shape[3]},), contiguous"
            )
        if weight.device != x.q.device:
            raise KernelError(f"the norm of {name} is on {weight.device}, but q on {x.q.device}: move it there")
    for one, other in ((norms.q, norms.k), (norms.text_q, norms.text_k)):
        if (one is None) != (other is None):
            raise KernelError("a stream has a norm for q or k alone: pass both weights, or neither")
