"""One iteration of Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015).

    x_t    = (1 - t) x0 + t eps                       t in {1, .75, .5, .25}
    x0_hat = x_t - t student(x_t, t, c)               the one student forward
    fake   = teacher features of (1 - s) x0_hat + s eps'    s ~ LogitNormal, shifted to the resolution
    real   = teacher features of (1 - r) x0 + r eps''
    wrong  = the same with the prompt of another sample     only if w = method.mismatched_weight is not 0
    L_D    = mean relu(1 - D(real)) + mean relu(1 + D(fake)) + w mean relu(1 + D(wrong))
    L_G    = -mean D(fake)                                  by the hinge loss; `losses` has the others

The gradient is cut at x0_hat: teacher and heads give dL_G / dx0_hat, and the student's engine backpropagates
that vector. An engine only ever sees its own network's graph, so sharding stays its private matter.

Teacher and heads take one prompt each time. Heads that tell real from wrong must read it ("matching-aware": Reed et
al. 2016, arXiv 1605.05396; GigaGAN, arXiv 2303.05511).

L_D adds up over its terms and averages over heads, which do not see one another. So where the teacher runs
without graph, the heads get their gradients group by group while it runs, and only one group's features are held.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.flow import add_noise, x0_from_velocity
from ladd_dist.distributed.clock import Clock
from ladd_dist.engines.base import Engine
from ladd_dist.methods.base import Metrics, rate
from ladd_dist.methods.finite import nan_unless_finite
from ladd_dist.methods.ladd.losses import PerHead, Role, adversarial_loss, distillation, r1_penalty
from ladd_dist.methods.ladd.sample import Sample, settings
from ladd_dist.methods.ladd.statistics import Opinions, against_data, diversity, opinions, told_apart
from ladd_dist.models.backbone import FeatureGroups

Teacher = Callable[..., Any]
"""As `Backbone.forward`: a network of its own, or the student's without its adapters."""


@dataclass(frozen=True)
class Term:
    """One term of the discriminator's loss L_D.

    Attributes:
        role: what the heads learn to take its latents for.
        level: the noise levels ``(B,)`` of its latents.
        cond: the prompts that teacher and heads see with them.
        rival: logits ``(heads, B, H, W)`` of the other side of each pair, if the loss compares.
    """

    role: Literal["real", "fake"]
    level: Tensor
    cond: Conditioning
    rival: Tensor | None = None


@dataclass(frozen=True)
class Fake:
    """The student's prediction, and what the teacher makes of it.

    Attributes:
        x0_hat: clean latents ``(B, C, H, W)``, with the student's graph.
        cut: the same detached, requiring a gradient.
        features: the teacher's of ``cut`` renoised, one ``(B, N, D)`` per head, with the teacher's graph.
    """

    x0_hat: Tensor
    cut: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class Judged:
    """What consecutive heads make of one term's latents.

    Attributes:
        per_head: loss and statistics of each.
        seen: how they judge each sample, for the record.
        r1: the penalty, ``(heads,)``.
        logits: ``(heads, B, H, W)``, without graph.
    """

    per_head: PerHead
    seen: Opinions
    r1: Tensor
    logits: Tensor

    @classmethod
    def cat(cls, groups: "list[Judged]") -> "Judged":
        """All heads' of one group of heads after the other."""
        per_head = PerHead(*map(torch.cat, zip(*(group.per_head for group in groups), strict=True)))
        seen = Opinions(*map(torch.cat, zip(*(group.seen for group in groups), strict=True)))
        r1, logits = (torch.cat([getattr(group, name) for group in groups]) for name in ("r1", "logits"))
        return cls(per_head, seen, r1, logits)


class LaddStep:
    """The three networks and the step.

    ``share`` is the weight of a micro-batch in the mean over this rank's micro-batches.

    Args:
        student: the engine of the trained transformer.
        teacher: the frozen backbone, wherever it is; called with taps it returns features.
        heads: the engine of the discriminator heads.
        clock: told which phase of the step begins.
    """

    def __init__(self, config: Config, student: Engine, teacher: Teacher, heads: Engine, clock: Clock) -> None:
        self.config, self.method, self.clock = config, settings(config), clock
        self.student, self.teacher, self.heads = student, teacher, heads
        self.taps: tuple[int, ...] = heads.module.taps  # type: ignore[assignment]
        self.fused_loss = heads.module.implementation == "triton"

    def iteration(self, index: int, samples: list[Sample]) -> Metrics:
        """Update the heads, then the student, once, on this rank's micro-batches of the global batch.

        With the shared fake pass the updated heads judge the very features that they were trained on, through
        the graph that made them. In the two-pass order student and teacher run again for the student's update,
        which costs a quarter more and keeps no graph between the two.

        A network whose gradient is not finite keeps its weights, on every rank alike; ``skipped`` is then 1.
        """
        share = 1 / len(samples)
        shared = self.method.fake_pass == "shared"
        fakes = [self.predict(sample) if shared else None for sample in samples]
        logs = [self.train_heads(sample, fake, share) for sample, fake in zip(samples, fakes, strict=True)]
        head_norm = self.update(self.heads, "head_optimizer", index)

        single, drawn = len(samples[0].batch.ids) == 1, list[Tensor]()
        for number, sample in enumerate(samples):
            fake = fakes[number] or self.predict(sample)
            logs[number] |= self.train_student(sample, fake, share, last=number + 1 == len(samples))
            if single:
                drawn.append(fake.cut.detach())
        student_norm = self.update(self.student, "student_optimizer", index)

        means = logs[0]
        if len(logs) > 1:
            means = {key: torch.stack([log[key] for log in logs]).nanmean(0) for key in means}
        if single:  # a micro-batch has no pair of samples, but all of them together may have
            means |= diversity(torch.cat(drawn), torch.cat([sample.batch.latents for sample in samples]))
        skipped = ~(student_norm.isfinite() & head_norm.isfinite())
        norms = {"student_grad_norm": student_norm, "head_grad_norm": head_norm}
        return means | norms | {"skipped": skipped.float()}

    def predict(self, sample: Sample) -> Fake:
        """The student's clean prediction, and the teacher's features of it, renoised to level ``s``."""
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
        """Accumulate the gradient of ``share * (L_D + R1)`` in the heads, predicting a fake if not given one.

        A loss that compares needs both sides of a pair at once: the fake ones are then judged without a graph first,
        and in the two-pass order their features are held, which is less than the student's update will hold.
        """
        cond, compares = sample.batch.cond, self.method.compares
        if compares and fake is None:
            with torch.no_grad():
                fake = self.predict(sample)
        features = None if fake is None else [f.detach() for f in fake.features]
        real_term, fake_term = Term("real", sample.r, cond), Term("fake", sample.s, cond)
        if compares:
            self.clock.mark("head forward")
            with torch.no_grad():
                rival = self.heads(features, sample.grid, sample.s, cond.pooled, student_time=sample.t)
            real_term = replace(real_term, rival=rival)
        x_r = add_noise(sample.batch.latents, sample.draws.real_noise, sample.r)
        real = self.judge_while_teacher_runs(x_r, real_term, sample, share)
        if compares:
            fake_term = replace(fake_term, rival=real.logits)
        if features is not None:
            judged = self.judge(features, fake_term, sample, share)
        else:
            with torch.no_grad():
                x_s = add_noise(self.denoise(sample), sample.draws.fake_noise, sample.s)
            judged = self.judge_while_teacher_runs(x_s, fake_term, sample, share)
        return self.train_on_mismatched(x_r, fake_term.rival, sample, share) | {
            "d_loss": real.per_head.loss.mean() + judged.per_head.loss.mean(),
            "r1": real.r1.mean(),
            "real_logit": real.per_head.logit,
            "fake_logit": judged.per_head.logit,
            "real_right": real.per_head.right.mean(),
            "fake_right": judged.per_head.right.mean(),
            **told_apart(real.seen, judged.seen, sample.r, sample.s),
        }

    def train_on_mismatched(self, x_r: Tensor, rival: Tensor | None, sample: Sample, share: float) -> Metrics:
        """Accumulate the gradient of L_D's last term, if it has a weight. Its loss is no part of ``d_loss``."""
        weight, cond = self.method.mismatched_weight, sample.batch.mismatched
        if not weight:
            return {}
        assert cond is not None  # `Method.mismatched_prompts` asks for it
        term = Term("fake", sample.r, cond, rival)
        wrong = self.judge_while_teacher_runs(x_r, term, sample, weight * share).per_head
        return {"mismatched_logit": wrong.logit, "mismatched_right": wrong.right.mean()}

    def judge_while_teacher_runs(self, x: Tensor, term: Term, sample: Sample, share: float) -> Judged:
        """`judge` noised latents ``x``, group by group as the teacher's blocks give their features."""
        judged: list[Judged] = []

        def judge(first: int, features: list[Tensor]) -> None:
            with torch.enable_grad():
                judged.append(self.judge(features, term, sample, share, first))
            self.clock.mark("teacher forward")

        self.clock.mark("teacher forward")
        groups = FeatureGroups(self.config.discriminator.kept_features, len(self.taps), judge)
        with torch.no_grad():  # not inference_mode: the heads' autograd must accept these features
            self.teacher(x, term.level, term.cond, self.taps, groups)
        return Judged.cat(judged)

    def judge(self, features: list[Tensor], term: Term, sample: Sample, share: float, first: int = 0) -> Judged:
        """Let heads judge their blocks' features, and accumulate the gradient of their part of one of L_D's terms.

        Args:
            features: one ``(B, N, D)`` for each of consecutive heads, the first of which has the number ``first``.
        """
        weight = self.method.r1_weight if term.role == "real" else 0.0
        self.clock.mark("head forward")
        judge = partial(self.heads, features, sample.grid, term.level, term.cond.pooled, first, student_time=sample.t)
        if weight:
            logits, squared_slopes = judge("twice")
            r1 = r1_penalty(squared_slopes, logits[0, 0].numel())
        else:
            logits = judge()
            r1 = logits.new_zeros(())
        rival = None if term.rival is None else term.rival[first : first + len(features)]
        result = self.loss(logits, term.role, rival)
        loss = (result.loss.mean() + weight * r1) * (len(features) / len(self.taps))
        self.clock.mark("head backward")
        self.heads.backward(share * loss * nan_unless_finite(loss))
        per_head = PerHead(*(t.detach() for t in result))
        seen = opinions(logits, term.role, rival)
        return Judged(per_head, seen, r1.detach().expand(len(features)), logits.detach())

    def train_student(self, sample: Sample, fake: Fake, share: float, last: bool) -> Metrics:
        """Accumulate the gradient of ``share * (L_G + distillation)`` in the student."""
        self.clock.mark("head forward")
        pooled = sample.batch.cond.pooled
        logits = self.heads(fake.features, sample.grid, sample.s, pooled, gradients="inputs", student_time=sample.t)
        g_loss = self.loss(logits, "generator").loss.mean()
        self.clock.mark("teacher backward")
        (gradient,) = torch.autograd.grad(g_loss, fake.cut)
        self.clock.mark("student backward")
        loss, metrics = (fake.x0_hat * gradient).sum(), {"g_loss": g_loss.detach()}
        if weight := self.method.distillation_weight:
            metrics["distillation"] = distillation(fake.x0_hat, sample.batch.latents, sample.t)
            loss = loss + weight * metrics["distillation"]
        self.student.backward(share * loss * nan_unless_finite(torch.stack(list(metrics.values()))), last)
        latents = {"latent_grad_norm": gradient.norm(), **against_data(fake.x0_hat, sample.batch.latents)}
        return {key: value.detach() for key, value in (metrics | latents).items()}

    def loss(self, logits: Tensor, role: Role, rival: Tensor | None = None) -> PerHead:
        """The configured adversarial loss."""
        return adversarial_loss(logits, role, self.method.loss, rival, self.fused_loss)

    def update(self, network: Engine, section: str, index: int) -> Tensor:
        """Step a network's optimizer; returns the gradient's norm."""
        self.clock.mark("optimizer")
        return network.step(rate(self.config, section, index, network.rate_factor))
