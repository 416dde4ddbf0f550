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
    image, text = x.q.shape, x.text_q.shape
    if image[1] == 0:
        raise KernelError("q has no tokens: pass at least one image token")
    for index, (name, tensor) in enumerate(zip(Streams._fields, x, strict=True)):
        other, wanted = ("q", image) if index < 3 else ("text_q", text)
        if tensor.shape != wanted:
            raise KernelError(
                f"{name} has shape {tuple(tensor.shape)}, but {other} has {tuple(wanted)}: make them equal"
            )
    if (text[0], *text[2:]) != (image[0], *image[2:]):
        raise KernelError(
            f"text_q has shape {tuple(text)} and q {tuple(image)}: batch, heads and head_dim must agree"
        )
    _check_norms(x.q, norms)


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
    dtype, device = x.q.dtype, x.q.device
    for name, tensor in zip(Streams._fields, x, strict=True):
        if tensor.ndim != 4:
            raise KernelError(f"{name} has {tensor.ndim} dimensions: pass (batch, tokens, heads, head_dim)")
        if tensor.dtype != dtype or dtype not in ACCEPTED:
            raise KernelError(f"{name} is {tensor.dtype} and q {dtype}: pass all in bf16, fp16 or fp32")
        if tensor.device != device:
            raise KernelError(f"{name} is on {tensor.device}, but q on {device}: move them to one device")
        if not tensor.is_contiguous():
            raise KernelError(
                f"{name} is not contiguous in (batch, tokens, heads, head_dim): call .contiguous() first"
            )
    if (width := x.q.shape[3]) not in ATTENTION_HEAD_DIMS:
        raise KernelError(f"head_dim is {width}: only {', '.join(map(str, ATTENTION_HEAD_DIMS))} are built")


def _check_norms(q: Tensor, norms: Norms) -> None:
    width, device = q.shape[3], q.device
    for name, weight in zip(Norms._fields, norms, strict=True):
        if weight is None:
            continue
        if weight.shape != (width,) or not weight.is_contiguous():
            raise KernelError(f"the norm of {name} has weights {tuple(weight.shape)}: pass ({width},), contiguous")
        if weight.device != device:
            raise KernelError(f"the norm of {name} is on {weight.device}, but q on {device}: move it there")
    for one, other in ((norms.q, norms.k), (norms.text_q, norms.text_k)):
        if (one is None) != (other is None):
            raise KernelError("a stream has a norm for q or k alone: pass both weights, or neither")
