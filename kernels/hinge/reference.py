"""The hinge losses per head in plain PyTorch: the definition of correct.

L_D = mean relu(1 - D_real) + mean relu(1 + D_fake) and L_G = -mean D_fake (LADD, arXiv 2403.12015, sec. 3; Lim & Ye
2017) are means over heads of these. Logits are one per position, because a pooled logit at small batch saturates the
hinge to exactly zero; the generator's is not hinged, because it would have no gradient wherever it wins.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Role = Literal["real", "fake", "generator"]


class HingePerHead(NamedTuple):
    """One value per head, fp32, each a mean over batch and positions. Only ``loss`` has a gradient."""

    loss: Tensor
    """``(G,)``: of ``relu(1 - x)`` for real, ``relu(1 + x)`` for fake, ``-x`` for the generator."""
    logit: Tensor
    """``(G,)``: of the logits."""
    right: Tensor
    """``(G,)``: accuracy, the share of logits above 0 for real and below 0 otherwise."""


def hinge_reference(logits: Tensor, role: Role) -> HingePerHead:
    """As `kernels.hinge_per_head`, for every device and dtype."""
    x = logits.flatten(1)
    if role == "real":
        loss, right = torch.relu(1 - x), x > 0
    else:
        loss, right = torch.relu(1 + x) if role == "fake" else -x, x < 0
    return HingePerHead(loss.mean(1), x.detach().mean(1), right.to(x.dtype).mean(1))


def reference_gradient(gradient: Tensor, logits: Tensor, role: Role) -> Tensor:
    """Gradient by the logits, given that by the losses; at the margin itself it is zero, as PyTorch's."""
    share = (gradient / logits[0].numel()).view(-1, 1, 1, 1)
    if role == "generator":
        return -share.expand_as(logits).contiguous()
    inside = 1 - logits > 0 if role == "real" else 1 + logits > 0
    return torch.where(inside, -share if role == "real" else share, 0.0)
