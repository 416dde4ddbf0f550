"""The teacher's own features of latents: a feature space that every user has, without weights of another network."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.diffusion.flow import add_noise, shifted_location
from ladd_dist.diffusion.noise import image_noise, image_seed
from ladd_dist.drawing.pipeline import Encoded
from ladd_dist.methods.networks import meta_backbone

TIMES = (0.25, 0.75)
"""Low noise, which leaves texture, and middle noise, which leaves layout, at 4,096 image tokens: SD3's shift of 3
makes them of 0.1 and 0.5. Shifted to each bucket's own tokens, as noise levels are in training."""
WIDTH = 256
"""Features that are compared. A large teacher's are mixed down to so many, which 1,000 pictures suffice for."""

FeatureNetwork = Callable[..., Any]
"""As `Backbone.forward` with taps."""


class TeacherFeatures:
    """Noises latents, always with the same noise for a picture, and runs the frozen teacher to its middle block.

    The tokens there are normalised, as the next block would, and averaged. It is half a forward pass at each time.
    """

    def __init__(self, config: Config, teacher: FeatureNetwork) -> None:
        self._seed, self._teacher, self._tap = config.seed, teacher, middle_block(config)
        self._grid = LatentSpace.of(config.teacher.path).grid

    @torch.no_grad()
    def __call__(self, latents: Tensor, encoded: Encoded, numbers: list[int]) -> Tensor:
        """Features ``(B, 2 D)``, fp32 on the CPU.

        Args:
            latents: ``(B, C, H, W)``.
            encoded: their prompts.
            numbers: of the pictures: their noise is a function of these and the run's seed.
        """
        seeds = [image_seed(self._seed, "teacher features", number) for number in numbers]
        noises = image_noise(seeds, encoded.shape, len(TIMES), latents.device)
        tokens = math.prod(self._grid(*encoded.shape[1:]))
        pooled = []
        for time, noise in zip(TIMES, noises, strict=True):
            shifted = 1 / (1 + math.exp(-shifted_location(math.log(time / (1 - time)), tokens)))
            t = torch.full((len(latents),), shifted, device=latents.device)
            noised = add_noise(latents.float(), noise, t)
            (features,) = self._teacher(noised, t, encoded.cond, taps=(self._tap,))
            pooled.append(F.layer_norm(features.float(), features.shape[-1:]).mean(1))
        return torch.cat(pooled, 1).cpu()


def middle_block(config: Config) -> int:
    """The teacher's, counted from 0: the last that its features need."""
    return (meta_backbone(config.teacher.path).depth - 1) // 2


def by_level(features: Tensor) -> tuple[Tensor, ...]:
    """Features ``(n, D)`` at each of `TIMES`."""
    return features.chunk(len(TIMES), 1)


def comparable(features: Tensor, reference: Tensor) -> Tensor:
    """Features in units of the reference's spread, of no more than `WIDTH` channels.

    Channels of a transformer differ in size by orders of magnitude, and the largest alone would be compared. More
    than `WIDTH` are mixed by a fixed Gaussian projection, which keeps distances in the mean.

    Args:
        features: ``(n, F)``.
        reference: ``(m, F)``, m of 2 or more.

    Returns:
        float64 ``(n, min(F, WIDTH))``.
    """
    rows, others = features.double(), reference.double()
    spread = others.std(0)
    scaled = (rows - others.mean(0)) / torch.where(spread > 0, spread, 1)
    width = scaled.shape[1]
    if width <= WIDTH:
        return scaled
    mixing = torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scaled @ mixing / WIDTH**0.5
