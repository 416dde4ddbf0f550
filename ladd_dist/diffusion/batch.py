"""One micro-batch of synthetic latents, as the data reader yields it and the step takes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ladd_dist.diffusion.conditioning import Conditioning


@dataclass(frozen=True)
class Batch:
    """``B`` samples of one aspect-ratio bucket.

    ``latents`` ``(B, C, H, W)`` fp32; ``ids`` are the samples' dataset-wide numbers; ``bucket`` is the pixel
    size's name, ``HEIGHTxWIDTH``. ``mismatched`` is the conditioning of other samples' prompts, which are wrong
    for these latents; None unless the method asks for it. ``rejected`` are latents ``(B, C, H, W)`` fp32 of the
    pictures that were not preferred to these; None unless the dataset has pairs.
    """

    latents: Tensor
    cond: Conditioning
    ids: list[int]
    bucket: str
    mismatched: Conditioning | None = None
    rejected: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors; from page-locked memory without waiting for it."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy the tensors to page-locked memory; PyTorch's loader calls this by its name."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        mismatched = None if self.mismatched is None else Conditioning(*map(move, self.mismatched))
        return replace(
            self,
            latents=move(self.latents),
            cond=Conditioning(*map(move, self.cond)),
            mismatched=mismatched,
            rejected=None if self.rejected is None else move(self.rejected),
        )
