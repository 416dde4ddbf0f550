"""Sampling: the guided teacher in many steps, and the distilled student in few."""

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.flow import add_noise, x0_from_velocity


class VelocityNetwork(Protocol):
    """A network that predicts velocity from latents, times ``(B,)`` and conditioning."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning, /) -> Tensor:
        """Velocity of the latents' shape."""
        ...


@torch.no_grad()
def sample_ode(
    network: VelocityNetwork,
    noise: Tensor,
    times: list[float],
    cond: Conditioning,
    negative: Conditioning | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Euler's method along the flow, with classifier-free guidance where ``guidance`` exceeds 1.

    Args:
        noise: ``(B, C, H, W)``, the state at ``times[0]``.
        times: descending from 1 to a final 0.
        negative: the empty prompt's conditioning, one row or B.

    Returns:
        Latents ``(B, C, H, W)``.
    """
    x, batch = noise, len(noise)
    both = cond
    if guidance > 1:
        if negative is None:
            raise ValueError("guidance above 1 needs the empty prompt's conditioning")
        both = Conditioning.cat([negative.expand(batch), cond])
    for now, after in pairwise(times):
        t = torch.full((batch,), now, device=x.device)
        if guidance > 1:
            without, given = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            v = without + guidance * (given - without)
        else:
            v = network(x, t, cond)
        x = x + (after - now) * v
    return x


@torch.no_grad()
def sample_student(
    network: VelocityNetwork, noises: Tensor, times: list[float], cond: Conditioning, x0: Tensor | None = None
) -> Tensor:
    """The student's sampler: predict the clean latent, renoise it to the next time, repeat (LADD, sec. 3).

    Args:
        noises: ``(steps, B, C, H, W)``: initial noise, then one for every renoising.
        times: of the steps, descending; one for each of ``noises``, and the first is 1 unless ``x0`` is given.
        x0: latents to begin with, of the same shape as one of ``noises``: they are noised to the first time.

    Returns:
        Latents ``(B, C, H, W)``.
    """
    x = noises[0] if x0 is None else add_noise(x0, noises[0], torch.full((len(x0),), times[0], device=x0.device))
    for step, now in enumerate(times):
        t = torch.full((len(x),), now, device=x.device)
        x = x0_from_velocity(x, network(x, t, cond), t)
        if step + 1 < len(times):
            x = add_noise(x, noises[step + 1], torch.full_like(t, times[step + 1]))
    return x
