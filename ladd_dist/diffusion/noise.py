"""Randomness as a pure function of (seed, iteration, sample).

A training sample's noise does not depend on which rank holds it, on the world size or on what was drawn
before: a run needs no RNG state to resume, and one process and five hundred see the same numbers. Nor does it depend
on the model of the GPU, and a picture's on no device at all.
"""

import hashlib
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE_DEVICE = torch.device("cpu")
"""Whose noise all pictures begin with."""
_AT_ONCE = 1 << 16
"""A GPU deals a stream of random numbers to as many threads as it can run at once (PyTorch's
``DistributionTemplates.h``), which differs between models; for no more than these it is the same on all of them."""


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of one LADD iteration for ``B`` samples, fp32.

    ``*_noise`` are standard normal ``(B, C, H, W)``; ``student_time`` is uniform ``(B,)``; ``*_level`` are
    standard normal ``(B,)``, to be mapped to a noise level.
    """

    student_time: Tensor
    fake_level: Tensor
    real_level: Tensor
    student_noise: Tensor
    fake_noise: Tensor
    real_noise: Tensor


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream is given by the integers of ``key`` alone."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


def step_draws(seed: int, iteration: int, ids: list[int], shape: torch.Size, device: torch.device) -> StepDraws:
    """Draw everything one iteration needs, each sample from a stream of its own.

    Args:
        ids: the samples' dataset-wide ids.
        shape: ``(C, H, W)`` of one latent.
    """
    streams = [generator(device, seed, iteration, sample) for sample in ids]

    def normal(*size: int) -> Tensor:
        return torch.stack([_normal(size, stream) for stream in streams])

    time = torch.stack([torch.rand((), generator=stream, device=device) for stream in streams])
    levels = normal(2)
    noises = normal(3, *shape)
    return StepDraws(time, *levels.unbind(1), *noises.unbind(1))


def image_noise(seeds: list[int], shape: tuple[int, int, int], draws: int, device: torch.device) -> Tensor:
    """Noise for sampling: ``(draws, B, C, H, W)``, image ``i`` from ``torch.Generator().manual_seed(seeds[i])``.

    It is drawn on the CPU, whatever ``device`` it is for. The first draw is the initial noise and the others renoise
    between steps, in the order in which diffusers' pipeline with ``stochastic_sampling`` draws them.
    """
    streams = [torch.Generator(IMAGE_DEVICE).manual_seed(seed) for seed in seeds]
    noises = [torch.stack([torch.randn(shape, generator=s) for s in streams]) for _ in range(draws)]
    return torch.stack(noises).to(device)


def _normal(size: tuple[int, ...], stream: torch.Generator) -> Tensor:
    numbers = torch.empty(math.prod(size), device=stream.device)
    for part in numbers.split(_AT_ONCE):
        part.normal_(generator=stream)
    return numbers.view(size)


def image_seed(seed: int, purpose: str, number: int) -> int:
    """The seed of picture ``number`` for a purpose such as ``"synthesis"``: 63 bits, never shared by two."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of a run that has gone back ``attempt`` times, so that it does not replay its path: its own for 0."""
    return image_seed(seed, "attempt", attempt) if attempt else seed
