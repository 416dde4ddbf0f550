"""Latents to pictures and back, by the teacher's autoencoder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ladd_dist.models.sd3.configs import vae_config
from ladd_dist.models.sd3.networks import saved


class Vae:
    """The frozen autoencoder of a diffusers folder.

    Raises:
        LaddError: if the folder has none that can be loaded.
    """

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        self.net: AutoencoderKL = saved(folder, "vae").load().to(device).eval()
        self.net.requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` to pictures ``(B, 3, H, W)`` in [0, 1], fp32."""
        config = self.net.config
        pictures = self.net.decode(latents.float() / config.scaling_factor + (config.shift_factor or 0)).sample
        return (pictures / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] to latents ``(B, C, h, w)``, fp32: the mode of their posterior."""
        config = self.net.config
        latents = self.net.encode(2 * pictures.float() - 1).latent_dist.mode()
        return (latents - (config.shift_factor or 0)) * config.scaling_factor


def latent_factor(folder: str | Path) -> int:
    """Pixels per latent position along each side, from the VAE's config."""
    return 2 ** (len(vae_config(folder)["block_out_channels"]) - 1)
