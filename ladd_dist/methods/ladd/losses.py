"""What LADD adds to the hinge losses (`kernels.hinge_per_head`). Pure functions of logits and gradients."""

import torch
from torch import Tensor


def r1_penalty(logits: Tensor, head_inputs: list[Tensor]) -> Tensor:
    """Squared gradient of each sample's mean logit by its head inputs, mean over samples and heads.

    R1 (Mescheder et al. 2018, arXiv 1801.04406) with the head inputs in the place of the image: the double
    backward passes through the small heads only, never through the frozen teacher.

    Args:
        logits: ``(heads, B, H, W)`` logits of the real features.
        head_inputs: one ``(B, N, C)`` tensor per head, requiring gradients.

    Returns:
        Scalar, differentiable by the heads' parameters.
    """
    heads, batch = logits.shape[:2]
    # Heads and samples do not see one another, so one gradient of the sum holds each pair's own. A sample's
    # logit is its sum over positions divided by sqrt(positions): the penalty then does not depend on the
    # image's size while positions react to their own neighbourhood.
    positions = logits[0, 0].numel()
    grads = torch.autograd.grad(logits.sum() / positions**0.5, head_inputs, create_graph=True)
    return torch.stack([g.square().sum() for g in grads]).sum() / (heads * batch)


def poison(loss: Tensor) -> Tensor:
    """1 for a finite loss and NaN for any other: multiplied into a loss, it makes the whole gradient NaN.

    A clipped or saturated loss may be non-finite while its gradient is not. This way the gradient's norm, which
    all ranks share, tells all of them to skip the step.
    """
    return torch.where(loss.detach().isfinite(), 1.0, torch.nan)
