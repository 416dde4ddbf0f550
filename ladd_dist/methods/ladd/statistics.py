"""What an iteration says of its own health, from tensors that it has anyway: pure functions, without a host sync.

`training.rules` says which of these numbers tell a sick run.

Shapes: G heads, B samples; logits ``(G, B, H, W)``, latents ``(B, C, H, W)``, noise levels ``(B,)``.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ladd_dist.methods.base import Metrics
from ladd_dist.methods.ladd.losses import Role, margin

NOISE_BANDS = 4
"""Bands of noise levels, each as wide, by which heads are looked at: they have a meaning at every resolution."""


class Opinions(NamedTuple):
    """How heads judge samples, fp32 ``(G, B)``, each a mean over positions; ``spread`` is ``(G,)``."""

    logit: Tensor
    right: Tensor
    """Share of positions on the right side: with a `margin` above 0."""
    saturated: Tensor
    """Share of positions with a margin above 1, from which a hinge loss has no gradient."""
    spread: Tensor
    """Standard deviation of a head's logits over samples and positions: 0 for a head that looks at nothing."""


def opinions(logits: Tensor, role: Role, rival: Tensor | None = None) -> Opinions:
    """`Opinions` of logits by their `margin`."""
    logits = logits.detach()
    m = margin(logits, role, rival)
    right, saturated = ((m > least).float().mean((2, 3)) for least in (0, 1))
    return Opinions(logits.mean((2, 3)), right, saturated, logits.flatten(1).std(1, correction=0))


def told_apart(real: Opinions, fake: Opinions, real_level: Tensor, fake_level: Tensor) -> Metrics:
    """How well heads tell real from fake.

    Returns:
        ``gap`` between mean logits, ``*_saturated``; by head ``head_right``, the accuracy on both kinds alike, and
        ``head_spread``; by band of noise level accuracy and logit of both kinds, NaN for a band without a sample.
    """
    return (
        by_noise("real", real, real_level)
        | by_noise("fake", fake, fake_level)
        | {
            "gap": real.logit.mean() - fake.logit.mean(),
            "real_saturated": real.saturated.mean(),
            "fake_saturated": fake.saturated.mean(),
            "head_right": (real.right.mean(1) + fake.right.mean(1)) / 2,
            "head_spread": (real.spread + fake.spread) / 2,
        }
    )


def by_noise(kind: str, seen: Opinions, level: Tensor) -> Metrics:
    """Means over heads and the samples in each band, such as ``fake_right/noise_0.25-0.50``, in few operations."""
    values = torch.stack([seen.right.mean(0), seen.logit.mean(0)])
    band = (level * NOISE_BANDS).long().clamp(max=NOISE_BANDS - 1)
    inside = (band.unsqueeze(1) == torch.arange(NOISE_BANDS, device=band.device)).float()
    means = (values.unsqueeze(2) * inside).sum(1) / inside.sum(0)
    edges = [f"{edge / NOISE_BANDS:.2f}" for edge in range(NOISE_BANDS + 1)]
    names = [f"{kind}_{what}/noise_{low}-{high}" for what in ("right", "logit") for low, high in pairwise(edges)]
    return dict(zip(names, means.flatten().unbind(), strict=True))


def against_data(x0_hat: Tensor, x0: Tensor) -> Metrics:
    """The student's predictions against the latents that they were made from; a healthy student's are alike.

    Returns:
        ``x0_shift``: the largest distance of a channel's mean, in standard deviations of the data.
        ``x0_scale``: ratio of standard deviations.
        ``x0_detail``: ratio of the energy in the highest frequencies, by squared differences of neighbours.
        Also their `diversity`. Not finite for data without any variation.
    """
    ours, data = x0_hat.detach().float(), x0.float()
    shift = (ours.mean((0, 2, 3)) - data.mean((0, 2, 3))).abs().max()
    scale = data.std(correction=0)
    return {
        "x0_shift": shift / scale,
        "x0_scale": ours.std(correction=0) / scale,
        "x0_detail": _detail(ours) / _detail(data),
        **diversity(ours, data),
    }


def diversity(x0_hat: Tensor, x0: Tensor) -> Metrics:
    """How far samples are from one another, the student's and the data's; NaN for a single one, which has no pair.

    Returns:
        ``x0_diversity``: ratio of the mean distance between two samples.
        ``data_diversity``: that of the data, over what independent numbers would have: 0 for constant data.
    """
    ours, data = x0_hat.detach().float(), x0.float()
    independent = data.std(correction=0) * (2 * data[0].numel()) ** 0.5
    return {
        "x0_diversity": _distance(ours) / _distance(data),
        "data_diversity": _distance(data) / independent.clamp(min=1e-12),
    }


def _detail(x: Tensor) -> Tensor:
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()


def _distance(x: Tensor) -> Tensor:
    """Mean Euclidean distance between two samples."""
    return torch.pdist(x.flatten(1)).mean()
