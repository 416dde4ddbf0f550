"""One micro-batch of synthetic latents, as the data reader yields it and the step takes it."""

from dataclasses import dataclass, replace

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
        """Move the tensors; from page-locked memory without waiting for it."""
        latents, *cond = (tensor.to(device, non_blocking=True) for tensor in (self.latents, *self.cond))
        return replace(self, latents=latents, cond=Conditioning(*cond))

    def pin_memory(self) -> "Batch":
        """Copy the tensors to page-locked memory; PyTorch's loader calls this by its name."""
        latents, *cond = (tensor.pin_memory() for tensor in (self.latents, *self.cond))
        return replace(self, latents=latents, cond=Conditioning(*cond))
