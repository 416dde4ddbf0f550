"""One way to draw: prompts and seeds to conditioning, to latents, to pictures, whatever network draws them."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.noise import image_noise, image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing.sampling import VelocityNetwork, sample_ode, sample_student
from ladd_dist.engines.build import compute_dtype
from ladd_dist.log import log
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.family import Decoder, Encoder, Schedule
from ladd_dist.models.registry import family_of


@dataclass(frozen=True)
class Encoded:
    """``B`` prompts of one picture size, ready to be drawn: ``seeds`` make the noise, ``shape`` is a latent's."""

    cond: Conditioning
    seeds: list[int]
    shape: tuple[int, int, int]


class Pipeline:
    """Text encoders, schedule and VAE of the teacher's folder; the network that draws is an argument of each call.

    Raises:
        LaddError: if the text encoders cannot be loaded; the VAE is loaded by the first `decode`.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device, self._folder = config, device, config.teacher.path
        self._space = LatentSpace.of(self._folder)
        self._family = family_of(self._folder)
        self._text = self._family.conditioner(config.teacher, compute_dtype(config), device)

    def encode(self, prompts: list[str], seeds: list[int], bucket: Bucket) -> Encoded:
        """Encode prompts that are to be drawn in one size, each with the noise of its seed."""
        return Encoded(self._text.encode(prompts), seeds, self._space.shape(bucket))

    def encode_entries(self, entries: list[PromptEntry], purpose: str) -> Encoded:
        """Encode entries of one bucket, with noise that is a function of the run's seed, a purpose and their ids."""
        seeds = [image_seed(self._config.seed, purpose, entry.id) for entry in entries]
        return self.encode([entry.prompt for entry in entries], seeds, entries[0].bucket)

    def encode_empty(self) -> Conditioning:
        """The empty prompt's, one row: what guidance leads away from."""
        return self._text.encode([""])

    def release_text(self) -> None:
        """Free the text encoders' memory once all prompts are encoded."""
        del self._text

    def teacher(self, network: VelocityNetwork, encoded: Encoded, steps: int, guidance: float) -> Tensor:
        """Latents ``(B, C, H, W)`` along the teacher's own schedule, with classifier-free guidance above 1."""
        times = self._schedule.times(steps, math.prod(self._space.grid(*encoded.shape[1:])))
        return sample_ode(network, self._noise(encoded, 1)[0], times, encoded.cond, self._negative, guidance)

    def undistilled(self, network: VelocityNetwork, encoded: Encoded, steps: int) -> Tensor:
        """Latents ``(B, C, H, W)`` of an undistilled network at the student's times, by Euler's method, unguided."""
        times = [*self._config.method.times(steps), 0.0]
        return sample_ode(network, self._noise(encoded, 1)[0], times, encoded.cond)

    def student(self, network: VelocityNetwork, encoded: Encoded, steps: int | None = None) -> Tensor:
        """Latents ``(B, C, H, W)`` in so many steps, all of the student's by default, without guidance."""
        times = self._config.method.times(steps)
        return sample_student(network, self._noise(encoded, len(times)), times, encoded.cond)

    def redraw(self, network: VelocityNetwork, encoded: Encoded, picture: Tensor, times: list[float]) -> Tensor:
        """Latents ``(B, C, H, W)`` from a picture that is noised to a time of the student's and drawn on from there.

        Args:
            picture: ``(1, 3, H, W)`` in [0, 1], of the size of ``encoded``.
            times: of the steps from there on.
        """
        noises, latents = self._noise(encoded, len(times)), self._encoder.encode(picture.to(self._device))
        return sample_student(network, noises, times, encoded.cond, latents.expand(noises.shape[1:]))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1]."""
        return self._vae.decode(latents)

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents ``(B, C, H, W)``, fp32, of pictures ``(B, 3, H, W)`` in [0, 1] on any device."""
        return self._encoder.encode(pictures.to(self._device))

    def _noise(self, encoded: Encoded, draws: int) -> Tensor:
        return image_noise(encoded.seeds, encoded.shape, draws, self._device)

    @cached_property
    def _negative(self) -> Conditioning:
        return self.encode_empty()

    @cached_property
    def _schedule(self) -> Schedule:
        return self._family.schedule(self._folder)

    @cached_property
    def _vae(self) -> Decoder:
        return self._family.decoder(self._folder, self._device)

    @cached_property
    def _encoder(self) -> Encoder:
        return self._family.encoder(self._folder, self._device)


def teacher_schedule(config: Config) -> Schedule:
    """The guided teacher's schedule, tried on every bucket before anything large is loaded.

    Raises:
        LaddError: if it cannot be followed, or if a bucket does not fit the teacher.
    """
    folder = config.teacher.path
    schedule, space = family_of(folder).schedule(folder), LatentSpace.of(folder)
    for bucket in map(Bucket.parse, config.synthesis.buckets):
        schedule.times(config.synthesis.steps, math.prod(space.grid(*space.shape(bucket)[1:])))
    return schedule


def tell_cut(config: Config, prompts: Iterable[str], world: World) -> None:
    """A line that says how many prompts are cut since they are too long, if some are; called by all ranks.

    Raises:
        LaddError: if they cannot be measured.
    """
    different = list(dict.fromkeys(prompts))
    mine = family_of(config.teacher.path).cut(config.teacher, different[world.rank :: world.size])
    found = sum(map(Counter, world.gather(mine)), Counter[str]())
    if found:
        ends = ", ".join(f"{count:,} at {limit}" for limit, count in found.items())
        log(f"too long and cut, of {len(different):,} prompts: {ends}")


def load_backbone(folder: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    """A folder's transformer for inference."""
    return family_of(folder).load(folder, dtype).requires_grad_(False).eval().to(device)
