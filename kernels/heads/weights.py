"""The heads' parameters by name, and the checks of the operation's arguments."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.errors import KernelError

HEAD_WIDTH_STEP = 16
"""A head's widths are multiples of it: the depth of one tensor-core product."""
ACCEPTED = (torch.float32, torch.float16, torch.bfloat16)


class HeadWeights(NamedTuple):
    """Parameters of all heads, fp32 and contiguous.

    G heads; B samples; K channels of the tokens and of the first convolution, N of the second.

    The two convolutions' filters have the layout of `torch.nn.functional.conv2d` with ``groups=G``.
    """

    conv1: Tensor
    """``(G*K, K, 3, 3)``"""
    bias1: Tensor
    """``(G*K,)``"""
    gamma1: Tensor
    """``(G*K,)``, GroupNorm's scale"""
    beta1: Tensor
    """``(G*K,)``, GroupNorm's shift"""
    conv2: Tensor
    """``(G*N, K, 3, 3)``"""
    bias2: Tensor
    """``(G*N,)``"""
    gamma2: Tensor
    """``(G*N,)``"""
    beta2: Tensor
    """``(G*N,)``"""
    logit: Tensor
    """``(G, B, N)``, of the last 1x1 convolution: each sample has its own, since they are conditioned"""
    logit_bias: Tensor
    """``(G,)``"""


def check(x: Tensor, weights: HeadWeights, groups: int) -> None:
    """Check shapes, dtypes, devices and layout.

    Raises:
        KernelError: naming the argument and what to do.
    """
    if x.dim() != 5:
        raise KernelError(f"x has {x.dim()} dimensions: pass projected tokens (heads, batch, H, W, width)")
    if x.dtype not in ACCEPTED:
        raise KernelError(f"x is {x.dtype}: cast it to float32, float16 or bfloat16")
    if 0 in x.shape:
        raise KernelError(f"x is empty, {tuple(x.shape)}: pass at least one head, sample and position")
    n = weights.logit.shape[-1]
    for name, width in (("x", x.shape[-1]), ("weights.logit", n)):
        if width % HEAD_WIDTH_STEP:
            raise KernelError(f"{name} has width {width}: choose a multiple of {HEAD_WIDTH_STEP}, or the reference")
        if groups < 1 or width % groups:
            raise KernelError(f"groups={groups} does not divide the width {width} of {name}: choose a divisor")
    for name, shape in zip(HeadWeights._fields, _shapes(x, n), strict=True):
        _check_weight(name, getattr(weights, name), shape, x.device)
    if not x.is_contiguous():
        raise KernelError(f"x is not contiguous, strides {x.stride()}: call x.contiguous()")


def _shapes(x: Tensor, n: int) -> tuple[tuple[int, ...], ...]:
    heads, batch, _, _, k = x.shape
    one, two = (heads * k,), (heads * n,)
    conv1, conv2 = (heads * k, k, 3, 3), (heads * n, k, 3, 3)
    return conv1, one, one, one, conv2, two, two, two, (heads, batch, n), (heads,)


def _check_weight(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(tensor.shape) != shape:
        raise KernelError(f"weights.{name} has shape {tuple(tensor.shape)}: x and weights.logit want {shape}")
    if tensor.dtype != torch.float32:
        raise KernelError(f"weights.{name} is {tensor.dtype}: parameters are float32, call .float()")
    if tensor.device != device:
        raise KernelError(f"weights.{name} is on {tensor.device} and x on {device}: move one to the other's device")
    if not tensor.is_contiguous():
        raise KernelError(f"weights.{name} is not contiguous: call .contiguous()")
