"""Prompts and seeds to latents and pictures: one way to draw for synthesis, sampling and evaluation."""

import math
from functools import cached_property

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.noise import image_noise
from ladd_dist.drawing.sampling import VelocityNetwork, sample_ode, sample_student
from ladd_dist.engines.build import compute_dtype
from ladd_dist.models.sd3.schedule import TeacherSchedule
from ladd_dist.models.sd3.text import TextEncoders
from ladd_dist.models.sd3.transformer import Backbone, load_transformer
from ladd_dist.models.sd3.vae import Vae


class Painter:
    """The teacher folder's text encoders, schedule and VAE around a network that predicts velocity.

    Args:
        network: draws the pictures; the teacher itself if None.
    """

    def __init__(self, config: Config, device: torch.device, network: VelocityNetwork | None = None) -> None:
        folder, dtype = config.teacher.path, compute_dtype(config)
        self.space = LatentSpace.of(folder)
        self.text = TextEncoders(folder, dtype, device, config.teacher.max_t5_tokens)
        self.network = network or load_backbone(folder, dtype, device)
        self.device, self._folder, self._method = device, folder, config.method
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
        times = self._schedule.times(steps, math.prod(self.space.grid(*shape[1:])))
        return sample_ode(self.network, noise, times, cond, self._negative, guidance)

    def student(
        self, cond: Conditioning, seeds: list[int], shape: tuple[int, int, int], steps: int | None = None
    ) -> Tensor:
        """Latents ``(B, C, H, W)`` in so many steps, all of the student's by default, without guidance."""
        times = self._method.times(steps)
        return sample_student(self.network, image_noise(seeds, shape, len(times), self.device), times, cond)

    @cached_property
    def _schedule(self) -> TeacherSchedule:
        return TeacherSchedule(self._folder)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1]."""
        if self._vae is None:
            self._vae = Vae(self._folder, self.device)
        return self._vae.decode(latents)


def teacher_schedule(config: Config) -> TeacherSchedule:
    """The guided teacher's schedule, tried on every bucket before anything large is loaded.

    Raises:
        LaddError: if it cannot be followed, or if a bucket does not fit the teacher.
    """
    schedule, space = TeacherSchedule(config.teacher.path), LatentSpace.of(config.teacher.path)
    for bucket in map(Bucket.parse, config.synthesis.buckets):
        schedule.times(config.synthesis.steps, math.prod(space.grid(*space.shape(bucket)[1:])))
    return schedule


def load_backbone(folder: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    """A folder's transformer for inference."""
    return Backbone(load_transformer(folder, dtype), dtype).requires_grad_(False).eval().to(device)
