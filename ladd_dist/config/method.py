"""What is minimised: one section for each method, told apart by ``method.name``."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import CountOrZero, NonNegativeNumber, Number, PositiveNumber, Probability


class MethodSection(Section):
    """What every method's section has: the times at which the student draws, and what the method needs or reads."""

    trains_heads: ClassVar[bool] = False
    """Whether it has a discriminator, and so reads ``discriminator``, ``head_optimizer`` and ``kernels.heads``, and
    builds a frozen teacher for it."""
    trains_adapters: ClassVar[bool] = False
    """Whether it holds a student with adapters against the student without, and so needs ``student.lora``."""

    draws_as_teacher: ClassVar[bool] = False
    """Whether what it trains is to be drawn as the teacher is, in many steps with guidance: so it is exported."""

    trains_on_pairs: ClassVar[bool] = False
    """Whether it needs a dataset of preference pairs, which ``launchers/synthesize.py`` does not draw."""

    student_times: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[1.0, 0.75, 0.5, 0.25], min_length=1)
    """Noise levels at which the student draws and is exported, descending from 1; LADD trains it at these alone."""

    @property
    def step_counts(self) -> list[int]:
        """Numbers of steps in which the student can draw, the most first: the divisors of the number of times."""
        count = len(self.student_times)
        return [steps for steps in range(count, 0, -1) if count % steps == 0]

    def times(self, steps: int | None = None) -> list[float]:
        """Times of ``steps`` steps: `student_times` at an even stride from the first, or all of them.

        Raises:
            ValueError: if ``steps`` does not divide their number.
        """
        count = len(self.student_times)
        stride, rest = divmod(count, steps or count)
        if rest:
            known = " or ".join(map(str, self.step_counts))
            raise ValueError(f"sampling.steps={steps} must divide the {count} method.student_times: set {known}")
        return self.student_times[::stride]

    @property
    def few_steps(self) -> bool:
        """Whether what is trained may be drawn at `student_times`, previewed, evaluated and exported."""
        return True

    @property
    def whole_batch(self) -> tuple[str, str] | None:
        """The setting that needs a rank's part of the global batch in one micro-batch, and the one to take instead.

        None where an iteration may accumulate over several micro-batches.
        """
        return None

    @model_validator(mode="after")
    def _descend(self) -> "MethodSection":
        times = self.student_times
        if times[0] != 1:
            raise ValueError(f"student_times must begin with 1, the pure noise that drawing begins with, not {times}")
        if any(now <= after for now, after in pairwise(times)):
            raise ValueError(f"student_times must descend, each once, not {times}")
        return self


class LaddConfig(MethodSection):
    """Latent Adversarial Diffusion Distillation (arXiv 2403.12015)."""

    trains_heads: ClassVar[bool] = True
    name: Literal["ladd"] = "ladd"
    warmup_probabilities: list[Probability] = Field(default=[0.0, 0.0, 0.5, 0.5])
    probabilities: list[Probability] = Field(default=[0.7, 0.1, 0.1, 0.1])
    warmup_iterations: CountOrZero = 500
    renoise_location: Number = 1.0
    """Logit-normal location at 4,096 image tokens; shifted to each bucket's own token count."""
    renoise_scale: PositiveNumber = 1.0
    renoise: Literal["independent", "same"] = "independent"
    """Whether real and fake of a pair are judged at noise levels of their own or at the same one."""
    r1_weight: NonNegativeNumber = 0.0
    fake_pass: Literal["shared", "two_pass"] = "shared"
    """One student forward and one teacher pass over the fake for both updates, or the plain order with two."""
    loss: Literal["hinge", "softplus", "relativistic"] = "hinge"
    """The adversarial loss, of both sides. ``softplus`` never saturates: it is the non-saturating GAN loss.
    ``relativistic`` is softplus of pairs for the heads: how much more real a latent looks than the student's of the
    same prompt, at the same position; the student's loss is the hinge's, a mean logit. It wants ``renoise=same``, so
    that noise is no difference between the two."""
    mismatched_weight: NonNegativeNumber = 0.0
    """Weight of real latents with the prompt of another sample, in the heads' loss: they learn to see them as fake,
    and so to read the prompt. One more teacher pass and one more read of the dataset for each sample."""
    distillation_weight: NonNegativeNumber = 0.0
    """Weight of velocity regression on the latents in the student's loss (the paper's ablation)."""

    @property
    def compares(self) -> bool:
        """Whether the loss is of pairs of real and fake logits, and not of each by itself."""
        return self.loss == "relativistic"

    @property
    def whole_batch(self) -> tuple[str, str] | None:
        """The shared fake pass keeps its graph from the heads' update to the student's."""
        return ("method.fake_pass=shared", "method.fake_pass=two_pass") if self.fake_pass == "shared" else None

    @model_validator(mode="after")
    def _distributions(self) -> "LaddConfig":
        for key in ("warmup_probabilities", "probabilities"):
            values = getattr(self, key)
            if len(values) != len(self.student_times):
                raise ValueError(f"{key} needs one entry for each of the {len(self.student_times)} student_times")
            if abs(sum(values) - 1) > 1e-6:
                raise ValueError(f"{key} must sum to 1, not {sum(values):g}")
        return self


class FlowMatchingConfig(MethodSection):
    """Flow-matching fine-tuning of the student on the latents, by velocity regression (arXiv 2403.03206, eq. 2)."""

    draws_as_teacher: ClassVar[bool] = True
    name: Literal["flow_matching"] = "flow_matching"
    time_location: Number = 0.0
    """Logit-normal location of the noise level at 4,096 image tokens; shifted to each bucket's own token count."""
    time_scale: PositiveNumber = 1.0


class DpoConfig(MethodSection):
    """Diffusion-DPO on preference pairs (arXiv 2311.12908), by adapters on a frozen base that is the reference."""

    trains_adapters: ClassVar[bool] = True
    trains_on_pairs: ClassVar[bool] = True
    name: Literal["dpo"] = "dpo"
    beta: PositiveNumber = 5000.0
    """How much a gain over the reference counts: half of beta times the difference of two mean squared errors."""
    noise_levels: Literal["logit_normal", "student_times"] = "logit_normal"
    """All of them, for a base; or the ``student_times``, alike often, for a base that is a student itself."""
    time_location: Number = 0.0
    """Logit-normal location of the noise level at 4,096 image tokens; shifted to each bucket's own token count."""
    time_scale: PositiveNumber = 1.0

    @property
    def few_steps(self) -> bool:
        """If the base is a student."""
        return self.noise_levels == "student_times"


def _name(section: Any) -> Any:
    """Configurations from before there was a choice name none."""
    return section.get("name", "ladd") if isinstance(section, dict) else getattr(section, "name", None)


MethodConfig = Annotated[
    Annotated[LaddConfig, Tag("ladd")]
    | Annotated[FlowMatchingConfig, Tag("flow_matching")]
    | Annotated[DpoConfig, Tag("dpo")],
    Discriminator(
        _name,
        custom_error_type="unknown_method",
        custom_error_message="unknown method: known are ladd, flow_matching, dpo",
    ),
]
"""The section ``method``."""
