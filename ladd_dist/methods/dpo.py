"""Diffusion-DPO on rectified flow: the student's adapters learn which of two pictures is preferred.

    x_t     = (1 - t) x0 + t eps                      the same eps and t for chosen and rejected x0
    gain    = |base(x_t) - v|^2 - |student(x_t) - v|^2          v = eps - x0, means over a latent
    L       = -log sigmoid(beta / 2 (gain(chosen) - gain(rejected)))

From Wallace et al. 2023, arXiv 2311.12908, eq. 14, with velocities for noise and its weights in beta. The base is the
student without its adapters, so that one copy serves both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ladd_dist.config import Config, DpoConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.flow import add_noise, choose_time, logit_normal, shifted_location, velocity
from ladd_dist.diffusion.noise import step_draws
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.build import build_engine
from ladd_dist.methods.base import STUDENT, Method, Metrics, Networks, by_bucket, rate
from ladd_dist.methods.charts import Chart, Curve, Panel
from ladd_dist.methods.finite import nan_unless_finite
from ladd_dist.methods.networks import meta_student, student_blueprint
from ladd_dist.methods.passes import Pass


@dataclass(frozen=True)
class Pairs:
    """``B`` pairs: what both pictures of each share is there twice, first for the chosen, then for the rejected ones.

    Attributes:
        latents: ``(2B, C, H, W)``.
        noise: like ``latents``.
        t: noise levels ``(2B,)``.
        cond: of ``2B``.
        bucket: its name.
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    cond: Conditioning
    bucket: str


class Dpo(Method):
    """The student's adapters."""

    OPTIMIZERS: ClassVar = {"student": "student_optimizer"}
    COMPARED = ("loss", "distance", "student_grad_norm")
    FIELDS = ("latent", "rejected", "context", "pooled")
    REMEDY = "lower student_optimizer.lr or method.beta"
    TRAINED = "tuned by Diffusion-DPO"
    CHARTS = (
        Chart(
            "preference",
            Panel("Loss", (Curve("loss", "student"),), level=(0.693, "ln 2: no preference")),
            Panel("Pairs ordered rightly (%)", (Curve("accuracy", "student", scale=100),), percent=True),
            "Curves of the loss and of the implicit accuracy over iterations",
            "How well the student, against its base, tells chosen from rejected pictures.",
        ),
        Chart(
            "distance",
            Panel(
                "Gain over the base, in mean squared error",
                (Curve("chosen_gain", "student", "chosen"), Curve("rejected_gain", "data", "rejected")),
            ),
            Panel("Mean squared distance from the base", (Curve("distance", "other"),)),
            "Curves of the gains on chosen and rejected pictures, and of the distance from the base",
            "Both gains below zero mean that the student forgets the data to tell the pictures apart.",
        ),
    )

    def __init__(self, config: Config, student: Engine, clock: Clock) -> None:
        self.config, self.clock = config, clock
        self.student, self.trained, self.frozen = student, {"student": student}, {}

    @classmethod
    def build(cls, config: Config, world: World, clock: Clock) -> "Dpo":
        """The student under its engine."""
        return cls(config, build_engine(config, student_blueprint(config, world), world), clock)

    @classmethod
    def networks(cls, config: Config) -> Networks:
        """The student."""
        return Networks({"student": meta_student(config)}, {})

    @classmethod
    def passes(cls, config: Config) -> Sequence[Pass]:
        """Forward as the base and as the student, and backward, over both pictures of a pair."""
        return [Pass(STUDENT, adapter=False, samples=2), Pass(STUDENT, "weights", samples=2)]

    def sample(self, seed: int, index: int, batch: Batch, grid: tuple[int, int]) -> Pairs:
        """Draw noise and noise levels, one for both pictures of a pair."""
        method, rejected = _settings(self.config), batch.rejected
        assert rejected is not None  # `FIELDS` asks for it
        draws = step_draws(seed, index, batch.ids, batch.latents.shape[1:], batch.latents.device)
        if method.noise_levels == "student_times":
            times = method.student_times
            t = choose_time(draws.student_time, times, [1 / len(times)] * len(times))
        else:
            location = shifted_location(method.time_location, grid[0] * grid[1])
            t = logit_normal(draws.real_level, location, method.time_scale)
        latents, noise = torch.cat([batch.latents, rejected]), draws.student_noise.repeat(2, 1, 1, 1)
        return Pairs(latents, noise, t.repeat(2), Conditioning.cat([batch.cond] * 2), batch.bucket)

    def iteration(self, index: int, samples: list[Pairs]) -> Metrics:
        """One update of the adapters."""
        logs = [self._accumulate(s, 1 / len(samples), s is samples[-1]) for s in samples]
        means = {key: torch.stack([log[key] for log in logs]).mean(0) for key in logs[0]}
        self.clock.mark("optimizer")
        norm = self.student.step(rate(self.config, "student_optimizer", index, self.student.rate_factor))
        skipped = (~norm.isfinite()).float()
        return by_bucket(means, samples[0].bucket) | {"student_grad_norm": norm, "skipped": skipped}

    def _accumulate(self, pairs: Pairs, share: float, last: bool) -> Metrics:
        x_t, v = add_noise(pairs.latents, pairs.noise, pairs.t), velocity(pairs.latents, pairs.noise)
        self.clock.mark("base forward")
        with torch.no_grad():
            base = self.student(x_t, pairs.t, pairs.cond, adapter=False)
        self.clock.mark("student forward")
        ours = self.student(x_t, pairs.t, pairs.cond)
        chosen, rejected = (_squared(base - v) - _squared(ours - v)).chunk(2)
        margin = _settings(self.config).beta / 2 * (chosen - rejected)
        loss = -logsigmoid(margin).mean()
        self.clock.mark("student backward")
        self.student.backward(share * loss * nan_unless_finite(loss), last)
        metrics = {
            "loss": loss,
            "accuracy": (margin > 0).float().mean(),
            "margin": margin.mean(),
            "chosen_gain": chosen.mean(),
            "rejected_gain": rejected.mean(),
            "distance": _squared(ours - base).mean(),
        }
        return {key: value.detach() for key, value in metrics.items()}

    @classmethod
    def facts(cls, config: Config) -> Mapping[str, str]:
        """What makes the loss."""
        method, lora = _settings(config), config.student.lora
        assert lora is not None
        return {"Beta": f"{method.beta:g}", "Adapters": f"rank {lora.rank}, scale {lora.scale:g}"}

    @classmethod
    def line(cls, row: Mapping[str, Any]) -> str:
        """Loss, implicit accuracy, margin, gradient."""
        told = f"loss {row['loss']:.4f}  right {row['accuracy']:.0%}  margin {row['margin']:+.3f}"
        return f"{told}  |g| {row['student_grad_norm']:.2e}"


def _squared(error: Tensor) -> Tensor:
    """Mean square of each latent, ``(2B,)``."""
    return error.square().mean((1, 2, 3))


def _settings(config: Config) -> DpoConfig:
    assert isinstance(config.method, DpoConfig)
    return config.method
