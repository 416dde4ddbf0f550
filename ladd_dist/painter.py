"""Prompts and seeds to latents and pictures: one way to draw for synthesis, sampling and evaluation."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ladd_dist.conditioning import Conditioning
from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.draws import image_noise
from ladd_dist.engines.build import compute_dtype
from ladd_dist.models.folder import component
from ladd_dist.models.text import TextEncoders
from ladd_dist.models.transformer import Backbone, load_transformer
from ladd_dist.models.vae import Vae
from ladd_dist.sampling import VelocityNetwork, sample_ode, sample_student, schedule_times


class Painter:
    """The teacher folder's text encoders, schedule and VAE around a network that predicts velocity.

    Args:
        network: draws the pictures; the teacher itself if None.
    """

    def __init__(self, config: Config, device: torch.device, network: VelocityNetwork | None = None) -> None:
        folder, dtype = config.teacher.path, compute_dtype(config)
        self.space = LatentSpace.of(folder)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(component(folder, "scheduler"))
        self.text = TextEncoders(folder, dtype, device, config.teacher.max_t5_tokens)
        self.network = network or load_backbone(folder, dtype, device)
        self.device, self._folder = device, folder
        self._negative: Conditioning | None = None
        self._vae: Vae | None = None

    def encode(self, prompts: list[str]) -> Conditioning:
        """Text conditioning of prompts."""
        return self.text.encode(prompts)

    def teacher(
        self, cond: Conditioning, seeds: list[int], shape: tuple[int, int, int], steps: int, guidance: float
    ) -> Tensor:
        """Latents ``(B, C, H, W)`` along the teacher's own schedule."""
        if self._negative is None:
            self._negative = self.encode([""])
        noise = image_noise(seeds, shape, 1, self.device)[0]
        return sample_ode(self.network, noise, schedule_times(self.scheduler, steps), cond, self._negative, guidance)

    def student(self, cond: Conditioning, seeds: list[int], shape: tuple[int, int, int], steps: int) -> Tensor:
        """Latents ``(B, C, H, W)`` in 1, 2 or 4 steps without guidance."""
        return sample_student(self.network, image_noise(seeds, shape, steps, self.device), cond)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1]."""
        if self._vae is None:
            self._vae = Vae(self._folder, self.device)
        return self._vae.decode(latents)


def load_backbone(folder: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    """A folder's transformer for inference."""
    return Backbone(load_transformer(folder, dtype), dtype).requires_grad_(False).eval().to(device)
