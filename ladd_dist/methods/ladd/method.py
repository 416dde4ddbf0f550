"""LADD as a method: what it declares, and how its networks are built."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ladd_dist.config import Config
from ladd_dist.diffusion.batch import Batch
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.build import build_engine, compute_dtype, place_frozen
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.log import log
from ladd_dist.methods.base import STUDENT, Method, Networks, optimizer
from ladd_dist.methods.charts import Chart
from ladd_dist.methods.ladd.charts import ladd_charts
from ladd_dist.methods.ladd.heads import DiscriminatorHeads, choose_heads, tapped_blocks
from ladd_dist.methods.ladd.sample import Sample, draw_sample, settings
from ladd_dist.methods.ladd.step import LaddStep, Teacher
from ladd_dist.methods.networks import meta_backbone, meta_student, student_blueprint, teacher_blueprint
from ladd_dist.methods.passes import Pass


class Ladd(LaddStep, Method):
    """Student, frozen teacher and discriminator heads."""

    OPTIMIZERS: ClassVar = {"student": "student_optimizer", "heads": "head_optimizer"}
    COMPARED = ("d_loss", "g_loss", "r1", "student_grad_norm", "head_grad_norm", "real_logit", "fake_logit")
    PAIRED = ("x0_diversity", "data_diversity")
    FIELDS = ("latent", "context", "pooled")
    BINDING = ("discriminator",)
    UNBOUND = ("method.fake_pass",)  # both orders make the same updates, and fewer ranks may need to accumulate
    ENTRY = "head"
    REMEDY = "lower student_optimizer.lr or head_optimizer.lr, or raise method.r1_weight"
    TRAINED = "distilled by Latent Adversarial Diffusion Distillation"
    CHARTS = ladd_charts("hinge")

    def __init__(self, config: Config, student: Engine, teacher: Teacher, heads: Engine, clock: Clock) -> None:
        super().__init__(config, student, teacher, heads, clock)
        self.trained, self.teacher_features = {"student": student, "heads": heads}, teacher
        self.frozen = {"teacher": teacher} if isinstance(teacher, nn.Module) else {}

    @classmethod
    def check(cls, config: Config) -> None:
        """Check that the teacher has the blocks that ``discriminator.blocks`` names."""
        tapped_blocks(config.discriminator, meta_backbone(config.teacher.path).depth)

    @classmethod
    def build(cls, config: Config, world: World, clock: Clock) -> "Ladd":
        """Student under its engine, teacher where it is placed or in the student, heads whole on every rank."""
        blueprint = student_blueprint(config, world)
        heads = make_heads(config, world.device).to(world.device)
        student = build_engine(config, blueprint, world)
        return cls(
            config,
            student=student,
            teacher=partial(student.module, adapter=False)
            if config.student.is_teachers_base
            else place_frozen(config, teacher_blueprint(config, world, heads.taps[-1]), world),
            heads=ReplicatedEngine(heads, optimizer(config, "head_optimizer"), compute_dtype(config), world),
            clock=clock,
        )

    @classmethod
    def networks(cls, config: Config) -> Networks:
        """The teacher up to the last tapped block, unless it is the student's base."""
        teacher = meta_backbone(config.teacher.path)
        with torch.device("meta"):
            heads = DiscriminatorHeads(config.discriminator, teacher.depth, teacher.width, teacher.pooled_width)
        teacher.truncate(heads.taps[-1])
        frozen = {} if config.student.is_teachers_base else {"teacher": teacher}
        return Networks({"student": meta_student(config), "heads": heads}, frozen)

    @classmethod
    def passes(cls, config: Config) -> Sequence[Pass]:
        """See `methods.ladd.step`: the fake latents once with a graph, the real ones without, also mismatched.

        In the two-pass order a loss that compares holds the features of a pass without graph for a while. They are
        not counted: the student's update, later, holds more.
        """
        method, kept = settings(config), config.discriminator.kept_features
        student = Pass(STUDENT, "weights")
        teacher = Pass(STUDENT if config.student.is_teachers_base else "teacher", features=True, adapter=False)
        heads = Pass("heads", "weights", at_once=kept)
        real = [teacher, replace(heads, twice=method.r1_weight > 0)]
        mismatched = [teacher, heads] if method.mismatched_weight else []
        fake = [student, replace(teacher, gradient="inputs")]
        learned, judged = replace(heads, at_once=None), Pass("heads", "inputs")
        rivals = [Pass("heads")] if method.compares else []
        if method.fake_pass == "shared":
            return [*fake, *rivals, *real, learned, *mismatched, judged]
        alone = [replace(student, gradient="none"), teacher]
        if method.compares:
            return [*alone, *rivals, *real, learned, *mismatched, *fake, judged]
        return [*real, *alone, heads, *mismatched, *fake, judged]

    @classmethod
    def teacher_blocks(cls, config: Config) -> int:
        """Up to the last that has a head."""
        return tapped_blocks(config.discriminator, meta_backbone(config.teacher.path).depth)[-1] + 1

    @classmethod
    def mismatched_prompts(cls, config: Config) -> str | None:
        """For the last term of L_D."""
        return "method.mismatched_weight" if settings(config).mismatched_weight else None

    @classmethod
    def compared(cls, config: Config) -> Sequence[str]:
        """Also the metrics of terms that have a weight."""
        method = settings(config)
        weights = {"distillation": method.distillation_weight, "mismatched_logit": method.mismatched_weight}
        return [*cls.COMPARED, *(name for name, weight in weights.items() if weight)]

    def sample(self, seed: int, index: int, batch: Batch, grid: tuple[int, int]) -> Sample:
        """See `draw_sample`."""
        return draw_sample(settings(self.config), seed, index, batch, grid)

    @classmethod
    def milestones(cls, config: Config) -> Mapping[int, str]:
        """Where the noise levels of the warm-up end, if there is one."""
        end = settings(config).warmup_iterations
        return {end: "warm-up ends"} if end else {}

    @classmethod
    def charts(cls, config: Config) -> Sequence[Chart]:
        """By its loss."""
        return ladd_charts(settings(config).loss)

    @classmethod
    def blocks(cls, config: Config) -> Sequence[int] | None:
        """Those that have a head."""
        return config.discriminator.blocks

    @classmethod
    def facts(cls, config: Config) -> Mapping[str, str]:
        """What makes the losses."""
        method, heads = settings(config), optimizer(config, "head_optimizer")
        blocks = config.discriminator.blocks
        return {
            "Head learning rate": f"{heads.lr:g}, {heads.decay}",
            "R1 weight": f"{method.r1_weight:g}",
            "Weight of mismatched prompts": f"{method.mismatched_weight:g}",
            "Heads": f"behind blocks {', '.join(map(str, blocks))}" if blocks else "behind every block",
        }

    @classmethod
    def line(cls, row: Mapping[str, Any]) -> str:
        """Losses, the gap between mean logits, the student's gradient."""
        real, fake = (sum(row[key]) / len(row[key]) for key in ("real_logit", "fake_logit"))
        losses = f"d {row['d_loss']:.3f}  g {row['g_loss']:+.3f}"
        return f"{losses}  gap {real - fake:.3f}  |g| {row['student_grad_norm']:.2e}"


def make_heads(config: Config, device: torch.device) -> DiscriminatorHeads:
    """The discriminator's heads for ``device``, with their initial weights on the CPU, a function of the seed.

    Raises:
        LaddError: if the kernels that the configuration asks for cannot run there.
    """
    teacher, discriminator = meta_backbone(config.teacher.path), config.discriminator
    heads = len(tapped_blocks(discriminator, teacher.depth))
    choice = choose_heads(config.kernels.heads, discriminator, heads, device, compute_dtype(config))
    log(f"discriminator heads: {choice}")
    torch.manual_seed(config.seed)
    return DiscriminatorHeads(
        discriminator, teacher.depth, teacher.width, teacher.pooled_width, choice.implementation
    )
