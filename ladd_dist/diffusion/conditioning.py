"""What a network is conditioned on beside time, as one value that code outside the models passes along."""

from typing import NamedTuple

import torch
from torch import Tensor


class Conditioning(NamedTuple):
    """Text conditioning of ``B`` samples.

    ``context``: token embeddings ``(B, L, D)``, padding positions included, since diffusers passes no text
    attention mask. ``pooled``: one embedding per sample ``(B, P)``.
    """

    context: Tensor
    pooled: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move and cast both."""
        return Conditioning(self.context.to(device, dtype), self.pooled.to(device, dtype))

    def expand(self, count: int) -> "Conditioning":
        """Repeat a single sample's conditioning ``count`` times without copying."""
        return Conditioning(self.context.expand(count, -1, -1), self.pooled.expand(count, -1))

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        """Concatenate along the batch."""
        return Conditioning(torch.cat([p.context for p in parts]), torch.cat([p.pooled for p in parts]))
