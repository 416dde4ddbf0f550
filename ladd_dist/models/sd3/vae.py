"""Latents to pictures and back, by the teacher's autoencoder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ladd_dist.models.sd3.configs import vae_config
from ladd_dist.models.sd3.networks import saved

_PIXELS = 1 << 20
"""So many at once: a picture of 1024x1024 takes 3.2 GB in fp32, and the eight of a preview would take eight times as
much, on a device that holds a training."""


class Vae:
    """The frozen autoencoder of a diffusers folder; large pictures pass through it one by one.

    Raises:
        LaddError: if the folder has none that can be loaded.
    """

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        self.net: AutoencoderKL = saved(folder, "vae").load().to(device).eval()
        self.net.requires_grad_(False)
        self._factor = latent_factor(folder)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` to pictures ``(B, 3, H, W)`` in [0, 1], fp32."""
        config = self.net.config
        scaled = latents.float() / config.scaling_factor + (config.shift_factor or 0)
        pictures = [self.net.decode(part).sample for part in scaled.split(_at_once(scaled, self._factor))]
        return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] to latents ``(B, C, h, w)``, fp32: the mode, scaled."""
        config = self.net.config
        scaled = pictures.float() * 2 - 1
        latents = [self.net.encode(part).latent_dist.mode() for part in scaled.split(_at_once(scaled, 1))]
        return (torch.cat(latents) - (config.shift_factor or 0)) * config.scaling_factor


def _at_once(images: Tensor, factor: int) -> int:
    """How many of a batch fit, of so many pixels along each side of a position."""
    return max(1, _PIXELS // (images.shape[-2] * images.shape[-1] * factor**2))


def latent_factor(folder: str | Path) -> int:
    """Pixels per latent position along each side, from the VAE's config."""
    return 2 ** (len(vae_config(folder)["block_out_channels"]) - 1)
