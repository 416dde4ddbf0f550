"""One iteration of Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015).

    x_t    = (1 - t) x0 + t eps                       t in {1, .75, .5, .25}
    x0_hat = x_t - t student(x_t, t, c)               the one student forward
    fake   = teacher features of (1 - s) x0_hat + s eps'    s ~ LogitNormal, shifted to the resolution
    real   = teacher features of (1 - r) x0 + r eps''
    L_D    = mean relu(1 - D(real)) + mean relu(1 + D(fake))
    L_G    = -mean D(fake)

The gradient is cut at x0_hat: teacher and heads give dL_G / dx0_hat, and the student's engine backpropagates
that vector. An engine only ever sees its own network's graph, so sharding stays its private matter.

L_D adds up over real and fake and averages over heads, which do not see one another: where the teacher runs without
graph, a few heads learn from a few blocks' features as soon as these appear, and the features are let go.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from kernels import HingePerHead, hinge_per_head
from ladd_dist.config import Config, MethodConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.flow import add_noise, choose_time, logit_normal, shifted_location, x0_from_velocity
from ladd_dist.diffusion.noise import StepDraws, attempt_seed, step_draws
from ladd_dist.distributed.clock import Clock
from ladd_dist.engines.base import Engine
from ladd_dist.engines.learning_rate import learning_rate
from ladd_dist.methods.ladd.losses import poison, r1_penalty
from ladd_dist.models.sd3.transformer import Few

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A batch with this iteration's randomness. ``t``, ``s``, ``r`` ``(B,)``: levels of input, fake and real."""

    batch: Batch
    grid: tuple[int, int]
    t: Tensor
    s: Tensor
    r: Tensor
    draws: StepDraws


@dataclass(frozen=True)
class View:
    """Noise level ``(B,)`` of latents that the teacher is shown, and the side of L_D that they are on."""

    level: Tensor
    side: Literal["real", "fake"]


@dataclass(frozen=True)
class Fake:
    """The student's prediction ``x0_hat``, its copy ``cut`` where the gradient is cut, and the latter's features."""

    x0_hat: Tensor
    cut: Tensor
    features: list[Tensor]


def draw_sample(
    config: Config, index: int, batch: Batch, grid: tuple[int, int], device: torch.device, attempt: int = 0
) -> Sample:
    """Attach iteration ``index``'s noise and noise levels to a batch, a function of seed, attempt and sample ids."""
    method: MethodConfig = config.method
    draws = step_draws(attempt_seed(config.seed, attempt), index, batch.ids, batch.latents.shape[1:], device)
    warm = index < method.warmup_iterations
    probabilities = method.warmup_probabilities if warm else method.probabilities
    t = choose_time(draws.student_time, method.student_times, probabilities)
    location = shifted_location(method.renoise_location, grid[0] * grid[1])
    s = logit_normal(draws.fake_level, location, method.renoise_scale)
    r = s if method.renoise == "same" else logit_normal(draws.real_level, location, method.renoise_scale)
    return Sample(batch, grid, t, s, r, draws)


class Ladd:
    """The three networks and the step.

    Args:
        student: the engine of the trained transformer.
        teacher: the placed, frozen backbone; called with taps it returns features.
        heads: the engine of the discriminator heads.
        clock: told which phase of the step begins.
    """

    def __init__(self, config: Config, student: Engine, teacher: nn.Module, heads: Engine, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.student, self.teacher, self.heads = student, teacher, heads
        self.taps: tuple[int, ...] = heads.module.taps  # type: ignore[assignment]
        implementation: str = heads.module.implementation  # type: ignore[assignment]
        self.hinge = partial(hinge_per_head, implementation=implementation)

    def iteration(self, index: int, samples: list[Sample]) -> Metrics:
        """Update the heads, then the student, once, on this rank's micro-batches of the global batch.

        With the shared fake pass the updated heads judge the very features that they were trained on, through
        the graph that made them. In the two-pass order the student and teacher run again for the student's
        update, which costs a quarter more and keeps no graph between the two.

        A network whose gradient is not finite keeps its weights, on every rank alike; ``skipped`` is then 1.

        Returns:
            0-d and ``(heads,)`` tensors on the device, averaged over micro-batches but not over ranks.
        """
        if self.config.method.fake_pass == "shared":
            (sample,) = samples
            fakes = [self.predict(sample)]
            logs = [self.train_heads(sample, fakes[0], share=1.0)]
        else:
            fakes = []
            logs = [self.train_heads(s, None, 1 / len(samples)) for s in samples]
        iterations = self.config.train.iterations
        self.clock.mark("optimizer")
        head_norm = self.heads.step(learning_rate(self.config.head_optimizer, index, iterations))

        for number, sample in enumerate(samples):
            fake = fakes[number] if fakes else self.predict(sample)
            g_loss = self.train_student(sample, fake, 1 / len(samples), last=number + 1 == len(samples))
            logs[number]["g_loss"] = g_loss
        self.clock.mark("optimizer")
        student_norm = self.student.step(learning_rate(self.config.student_optimizer, index, iterations))

        means = {key: torch.stack([log[key] for log in logs]).mean(0) for key in logs[0]}
        skipped = ~(student_norm.isfinite() & head_norm.isfinite())
        norms = {"student_grad_norm": student_norm, "head_grad_norm": head_norm}
        return means | norms | {"skipped": skipped.float()}

    def predict(self, sample: Sample) -> Fake:
        """The student's clean prediction and the teacher's view of it, renoised to level ``s``."""
        x0_hat = self.denoise(sample)
        self.clock.mark("teacher forward")
        cut = x0_hat.detach().requires_grad_()
        x_s = add_noise(cut, sample.draws.fake_noise, sample.s)
        return Fake(x0_hat, cut, self.teacher(x_s, sample.s, sample.batch.cond, self.taps))

    def denoise(self, sample: Sample) -> Tensor:
        """The student's clean prediction ``x0_hat``."""
        self.clock.mark("student forward")
        x_t = add_noise(sample.batch.latents, sample.draws.student_noise, sample.t)
        return x0_from_velocity(x_t, self.student(x_t, sample.t, sample.batch.cond), sample.t)

    def train_heads(self, sample: Sample, fake: Fake | None, share: float) -> Metrics:
        """Accumulate the gradient of ``share * (L_D + R1)`` in the heads, predicting a fake if not given one."""
        x_r = add_noise(sample.batch.latents, sample.draws.real_noise, sample.r)
        real, r1 = self.learn_in_passing(x_r, View(sample.r, "real"), sample, share)
        if fake is not None:
            judged, _ = self.learn([f.detach() for f in fake.features], 0, View(sample.s, "fake"), sample, share)
        else:
            with torch.no_grad():
                x_s = add_noise(self.denoise(sample), sample.draws.fake_noise, sample.s)
            judged, _ = self.learn_in_passing(x_s, View(sample.s, "fake"), sample, share)
        return {
            "d_loss": real.loss.mean() + judged.loss.mean(),
            "r1": r1.mean(),
            "real_logit": real.logit,
            "fake_logit": judged.logit,
            "real_right": real.right.mean(),
            "fake_right": judged.right.mean(),
        }

    def learn_in_passing(self, x: Tensor, view: View, sample: Sample, share: float) -> tuple[HingePerHead, Tensor]:
        """`learn`, a few heads at a time, while the teacher looks at noised latents ``x`` without graph."""
        learned: list[tuple[HingePerHead, Tensor]] = []

        def learn(first: int, features: list[Tensor]) -> None:
            with torch.enable_grad():
                learned.append(self.learn(features, first, view, sample, share))
            self.clock.mark("teacher forward")

        self.clock.mark("teacher forward")
        few = Few(self.config.discriminator.kept_features, len(self.taps), learn)
        with torch.no_grad():  # not inference_mode: the heads' autograd must accept these features
            self.teacher(x, view.level, sample.batch.cond, self.taps, few)
        hinges, penalties = zip(*learned, strict=True)
        return HingePerHead(*(torch.cat(parts) for parts in zip(*hinges, strict=True))), torch.cat(penalties)

    def learn(
        self, features: list[Tensor], first: int, view: View, sample: Sample, share: float
    ) -> tuple[HingePerHead, Tensor]:
        """Accumulate the part of one side's loss that the heads from ``first`` on have, given their features.

        Returns:
            Loss and statistics of each of these heads, and their R1 penalty, ``(heads,)``.
        """
        weight = self.config.method.r1_weight if view.side == "real" else 0.0
        features = [f.requires_grad_(weight > 0) for f in features]
        self.clock.mark("head forward")
        gradients = "twice" if weight > 0 else "once"
        logits = self.heads(features, sample.grid, view.level, sample.batch.cond.pooled, first, gradients)
        hinge = self.hinge(logits, view.side)
        r1 = r1_penalty(logits, features) if weight > 0 else torch.zeros_like(hinge.loss[0])
        loss = (hinge.loss.mean() + weight * r1) * (len(features) / len(self.taps))
        self.clock.mark("head backward")
        self.heads.backward(share * loss * poison(loss))
        return HingePerHead(*(t.detach() for t in hinge)), r1.detach().expand(len(features))

    def train_student(self, sample: Sample, fake: Fake, share: float, last: bool) -> Tensor:
        """Accumulate the gradient of ``share * L_G`` in the student; returns the loss."""
        self.clock.mark("head forward")
        d_fake = self.heads(fake.features, sample.grid, sample.s, sample.batch.cond.pooled, 0, "inputs")
        loss = self.hinge(d_fake, "generator").loss.mean()
        self.clock.mark("teacher backward")
        (gradient,) = torch.autograd.grad(loss, fake.cut)
        self.clock.mark("student backward")
        self.student.backward(share * (fake.x0_hat * gradient).sum() * poison(loss), last)
        return loss.detach()
