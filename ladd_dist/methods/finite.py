"""Losses that are not finite."""

import torch
from torch import Tensor


def nan_unless_finite(loss: Tensor) -> Tensor:
    """1 for finite losses and NaN for any other: multiplied into a loss, it makes the whole gradient NaN.

    A clipped or saturated loss may be non-finite while its gradient is not. This way the gradient's norm, which
    all ranks share, tells all of them to skip the step.
    """
    return torch.where(loss.detach().isfinite().all(), 1.0, torch.nan)
