"""Plain flow matching: the student's velocity is regressed on that of the latents (arXiv 2403.03206, eq. 2).

    x_t = (1 - t) x0 + t eps                        t ~ LogitNormal, shifted to the resolution
    L   = mean |student(x_t, t, c) - (eps - x0)|^2

It fine-tunes the teacher's copy on new latents, or trains a smaller student before it is distilled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ladd_dist.config import Config, FlowMatchingConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.flow import add_noise, logit_normal, shifted_location, velocity
from ladd_dist.diffusion.noise import step_draws
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.build import build_engine
from ladd_dist.methods.base import STUDENT, Method, Metrics, Networks, rate
from ladd_dist.methods.charts import Chart, Curve, Panel
from ladd_dist.methods.finite import nan_unless_finite
from ladd_dist.methods.networks import meta_student, student_blueprint
from ladd_dist.methods.passes import Pass


@dataclass(frozen=True)
class NoisedBatch:
    """A batch with noise ``(B, C, H, W)`` and noise levels ``(B,)``."""

    batch: Batch
    noise: Tensor
    t: Tensor


class FlowMatching(Method):
    """The student alone."""

    OPTIMIZERS: ClassVar = {"student": "student_optimizer"}
    COMPARED = ("loss", "student_grad_norm")
    FIELDS = ("latent", "context", "pooled")
    REMEDY = "lower student_optimizer.lr"
    TRAINED = "trained by flow matching"
    CHARTS = (
        Chart(
            "losses",
            Panel("Mean squared error of the velocity", (Curve("loss", "student"),)),
            Panel("Gradient norm", (Curve("student_grad_norm", "student"),), log=True),
            "Curves of the loss and of the gradient norm over iterations",
            "How far the student's velocity is from that of the latents, and the norm of its gradient.",
        ),
    )

    def __init__(self, config: Config, student: Engine, clock: Clock) -> None:
        self.config, self.clock = config, clock
        self.student, self.trained, self.frozen = student, {"student": student}, {}

    @classmethod
    def build(cls, config: Config, world: World, clock: Clock) -> "FlowMatching":
        """The student under its engine."""
        return cls(config, build_engine(config, student_blueprint(config, world), world), clock)

    @classmethod
    def networks(cls, config: Config) -> Networks:
        """The student."""
        return Networks({"student": meta_student(config)}, {})

    @classmethod
    def passes(cls, config: Config) -> Sequence[Pass]:
        """Once forward and backward."""
        return [Pass(STUDENT, "weights")]

    def sample(self, seed: int, index: int, batch: Batch, grid: tuple[int, int]) -> NoisedBatch:
        """Draw noise and noise levels."""
        method = self.config.method
        assert isinstance(method, FlowMatchingConfig)
        draws = step_draws(seed, index, batch.ids, batch.latents.shape[1:], batch.latents.device)
        location = shifted_location(method.time_location, grid[0] * grid[1])
        return NoisedBatch(batch, draws.student_noise, logit_normal(draws.real_level, location, method.time_scale))

    def iteration(self, index: int, samples: list[NoisedBatch]) -> Metrics:
        """One update of the student."""
        losses = [self._accumulate(s, 1 / len(samples), s is samples[-1]) for s in samples]
        self.clock.mark("optimizer")
        norm = self.student.step(rate(self.config, "student_optimizer", index, self.student.rate_factor))
        skipped = (~norm.isfinite()).float()
        return {"loss": sum(losses) / len(losses), "student_grad_norm": norm, "skipped": skipped}  # type: ignore[dict-item]

    def _accumulate(self, sample: NoisedBatch, share: float, last: bool) -> Tensor:
        self.clock.mark("student forward")
        x0 = sample.batch.latents
        x_t = add_noise(x0, sample.noise, sample.t)
        error = self.student(x_t, sample.t, sample.batch.cond) - velocity(x0, sample.noise)
        loss = error.square().mean()
        self.clock.mark("student backward")
        self.student.backward(share * loss * nan_unless_finite(loss), last)
        return loss.detach()

    @classmethod
    def line(cls, row: Mapping[str, Any]) -> str:
        """Loss and gradient."""
        return f"loss {row['loss']:.4f}  |g| {row['student_grad_norm']:.2e}"
