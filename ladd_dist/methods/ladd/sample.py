"""A micro-batch with the random numbers of one LADD iteration."""

from dataclasses import dataclass

from torch import Tensor

from ladd_dist.config import Config, LaddConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.flow import choose_time, logit_normal, shifted_location
from ladd_dist.diffusion.noise import StepDraws, step_draws


@dataclass(frozen=True)
class Sample:
    """A batch with its randomness.

    Attributes:
        grid: rows and columns of the latents' image tokens.
        t: noise levels ``(B,)`` of the student's input, ``s`` of its renoised prediction, ``r`` of the real latents.
    """

    batch: Batch
    grid: tuple[int, int]
    t: Tensor
    s: Tensor
    r: Tensor
    draws: StepDraws


def draw_sample(method: LaddConfig, seed: int, index: int, batch: Batch, grid: tuple[int, int]) -> Sample:
    """Attach iteration ``index``'s noise and noise levels to a batch, a pure function of seed, index and sample ids.

    Args:
        grid: rows and columns of its image tokens, which decide how far noise levels are shifted.
    """
    draws = step_draws(seed, index, batch.ids, batch.latents.shape[1:], batch.latents.device)
    warm = index < method.warmup_iterations
    probabilities = method.warmup_probabilities if warm else method.probabilities
    t = choose_time(draws.student_time, method.student_times, probabilities)
    location = shifted_location(method.renoise_location, grid[0] * grid[1])
    s = logit_normal(draws.fake_level, location, method.renoise_scale)
    r = s if method.renoise == "same" else logit_normal(draws.real_level, location, method.renoise_scale)
    return Sample(batch, grid, t, s, r, draws)


def settings(config: Config) -> LaddConfig:
    """The section ``method`` of a run by LADD."""
    assert isinstance(config.method, LaddConfig)
    return config.method
