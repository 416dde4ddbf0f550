"""Rectified-flow arithmetic and the two noise-level distributions of LADD.

Pure functions. Conventions (SD3, arXiv 2403.03206): time ``t`` is in [0, 1], ``t = 0`` is data and
``t = 1`` is noise; the network predicts the velocity ``v = eps - x0``; diffusers' SD3 transformer takes
``1000 t`` as its timestep.

Shapes: latents ``(B, C, H, W)``, times ``(B,)``.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor

TIMESTEP_SCALE = 1000.0
"""diffusers' SD3 transformer is conditioned on ``TIMESTEP_SCALE * t``."""

REFERENCE_TOKENS = 4096
"""Image tokens at 1024 x 1024, the resolution at which LADD's renoise location is stated."""


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """View times ``(B,)`` so that they broadcast over latents ``(B, ...)``.

    Raises:
        ValueError: if ``t`` is not one number per sample.
    """
    if t.shape != like.shape[:1]:
        raise ValueError(f"time must have shape ({like.shape[0]},), one per sample, but has {tuple(t.shape)}")
    return t.view(-1, *(1,) * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t = (1 - t) x0 + t eps``, the straight path from data to noise (SD3, eq. 13)."""
    if x0.shape != noise.shape:
        raise ValueError(f"noise {tuple(noise.shape)} must have the shape of the latents {tuple(x0.shape)}")
    t = expand_time(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """``v = eps - x0``, the regression target of flow matching."""
    return noise - x0


def x0_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """``x0_hat = x_t - t v``: the end of the straight path through ``x_t`` with slope ``v``."""
    return x_t - expand_time(t, x_t) * v


def shifted_location(location: float, tokens: int) -> float:
    """Logit-normal location for an image of ``tokens`` tokens, given the one stated at 4,096.

    SD3's resolution shift multiplies the odds ``t / (1 - t)`` by ``sqrt(n / 4096)`` (arXiv 2403.03206,
    eq. 23), which in logit space adds ``ln sqrt(n / 4096)``.

    Raises:
        ValueError: if ``tokens`` is not positive.
    """
    if tokens <= 0:
        raise ValueError(f"an image has at least one token, not {tokens}")
    return location + 0.5 * math.log(tokens / REFERENCE_TOKENS)


def logit_normal(normal: Tensor, location: float, scale: float) -> Tensor:
    """Map standard normal draws to ``LogitNormal(location, scale)`` in (0, 1)."""
    return torch.sigmoid(location + scale * normal)


def choose_time(uniform: Tensor, times: list[float], probabilities: list[float]) -> Tensor:
    """Map uniform draws in [0, 1) to ``times`` with the given ``probabilities`` (inverse CDF).

    A time of probability 0 is never chosen.
    """
    # By numbers, which kernels take as they are: to copy a list to a GPU makes the host wait for it.
    time = torch.full_like(uniform, times[0], dtype=torch.float32)
    # Only inner edges: rounding in the last one must not push a draw past the end.
    last = max(i for i, p in enumerate(probabilities) if p > 0)
    for after, edge in zip(times[1 : last + 1], accumulate(probabilities), strict=False):
        time.masked_fill_(uniform.double() >= edge, after)
    return time
