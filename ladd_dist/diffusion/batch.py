"""One micro-batch of synthetic latents, as the data reader yields it and the step takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ladd_dist.diffusion.conditioning import Conditioning


@dataclass(frozen=True)
class Batch:
    """``B`` samples of one aspect-ratio bucket.

    ``latents`` ``(B, C, H, W)`` fp32; ``ids`` are the samples' dataset-wide numbers; ``bucket`` is the pixel
    size's name, ``HEIGHTxWIDTH``.
    """

    latents: Tensor
    cond: Conditioning
    ids: list[int]
    bucket: str

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors."""
        latents = self.latents.to(device, non_blocking=True)
        return Batch(latents, self.cond.to(device), self.ids, self.bucket)
