"""LADD's losses: pure functions of logits, gradients and latents.

Adversarial losses have a value per head, and logits are one per position: a pooled logit at small batch saturates the
hinge to exactly zero.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus as torch_softplus

from kernels import hinge_per_head
from ladd_dist.diffusion.flow import expand_time

Role = Literal["real", "fake", "generator"]
"""Real and fake logits in the discriminator's loss, and fake ones in the generator's."""


class PerHead(NamedTuple):
    """One value per head, fp32 ``(heads,)``, each a mean over batch and positions. Only ``loss`` has a gradient."""

    loss: Tensor
    logit: Tensor
    right: Tensor
    """Accuracy: the share of positions with a `margin` above 0."""


def margin(logits: Tensor, role: Role, rival: Tensor | None = None) -> Tensor:
    """How far each position is on the side where heads should have it: of 0, or of the rival's logit there.

    Args:
        rival: logits of the other side of each pair, for a discriminator's loss that compares: the fake ones of real
            latents, the real ones of fake. They get no gradient here but from their own term.
    """
    x = logits if rival is None else logits - rival.detach()
    return x if role == "real" else -x


def hinge(m: Tensor, role: Role) -> Tensor:
    """``relu(1 - m)`` of a `margin` m (LADD, sec. 3; Lim & Ye 2017), of each position.

    The generator's is ``m``: hinged, it would have no gradient wherever it wins.
    """
    return m if role == "generator" else torch.relu(1 - m)


def softplus(m: Tensor, role: Role) -> Tensor:
    """``softplus(-m)``, the generator's ``softplus(m)``: the non-saturating loss (Goodfellow et al. 2014, sec. 3)."""
    return torch_softplus(m if role == "generator" else -m)


def relativistic(m: Tensor, role: Role) -> Tensor:
    """`softplus` of margins between the two of a pair (Jolicoeur-Martineau 2019, arXiv 1807.00734; Huang et al. 2024,
    arXiv 2501.05441, sec. 2). The generator's is ``m``, of its own logits alone, as the hinge's: to compare
    those with real ones made no difference on the digits.
    """
    return hinge(m, role) if role == "generator" else softplus(m, role)


LOSSES: dict[str, Callable[[Tensor, Role], Tensor]] = {
    "hinge": hinge,
    "softplus": softplus,
    "relativistic": relativistic,
}
"""By ``method.loss``."""

DRIFT = 1e-3
"""Weight of the squared logits of real latents (Karras et al. 2018, arXiv 1710.10196, appendix A.1) in a loss that
compares: pairs leave open where logits lie as a whole, and on the digits they went to -60 in 500 iterations."""


def adversarial_loss(
    logits: Tensor, role: Role, name: str = "hinge", rival: Tensor | None = None, fused: bool = False
) -> PerHead:
    """Mean loss, mean logit and share of rightly judged positions of every head.

    Args:
        logits: ``(heads, B, H, W)``, fp32.
        name: one of `LOSSES`.
        rival: see `margin`; given where ``LaddConfig.compares``.
        fused: compute the hinge by its kernel, which gives the same in one pass.
    """
    if fused and name == "hinge":
        return PerHead(*hinge_per_head(logits, role, implementation="triton"))
    x, m = logits.flatten(1), margin(logits, role, rival).flatten(1)
    loss = LOSSES[name](m, role).mean(1)
    if rival is not None and role == "real":
        loss = loss + DRIFT * x.square().mean(1)
    return PerHead(loss, x.detach().mean(1), (m > 0).to(x.dtype).mean(1))


def r1_penalty(squared_slopes: Tensor, positions: int) -> Tensor:
    """Gradient penalty: squared gradient of each sample's mean logit by its head inputs, mean over samples and heads.

    R1 (Mescheder et al. 2018, arXiv 1801.04406) with the head inputs in the place of the image: the double
    backward passes through the small heads only, never through the frozen teacher.

    Args:
        squared_slopes: ``(heads, B)``, of the sum of each sample's logits.
        positions: of its logits, by whose root the sum is divided: the penalty then does not depend on the image's
            size while positions react to their own neighbourhood.

    Returns:
        Scalar, differentiable by the heads' parameters.
    """
    return squared_slopes.mean() / positions


def distillation(x0_hat: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Mean squared error ``(x0_hat - x0) / t`` of the student's velocity on the teacher's latents."""
    return ((x0_hat - x0) / expand_time(t, x0)).square().mean()
