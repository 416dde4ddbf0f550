"""What is drawn, by the teacher for training and by the student to look at."""

from typing import Annotated

from pydantic import Field, PositiveInt

from ladd_dist.config.section import Section
from ladd_dist.config.values import JudgeName, PathName

BucketName = Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]
StepCount = Annotated[int, Field(ge=1, le=1000)]


class SynthesisConfig(Section):
    """Offline generation of the training latents with the guided teacher."""

    prompts: PathName
    """``.jsonl`` with ``prompt`` and optional ``bucket``, or ``.txt`` with one prompt per line."""
    buckets: Annotated[list[BucketName], Field(min_length=1)]
    """Aspect-ratio buckets, ``HEIGHTxWIDTH`` in pixels; prompts without one are dealt to them in turn."""
    images_per_prompt: PositiveInt = 1
    steps: StepCount = 28
    guidance: Annotated[float, Field(ge=1)] = 4.5
    batch: PositiveInt = 8
    part_samples: PositiveInt = 512
    """Samples of a part: the unit that a rank claims, writes whole and never repeats."""


class SamplingConfig(Section):
    """Few-step sampling with the student."""

    steps: PositiveInt | None = None
    """A divisor of the number of ``method.student_times``, which are taken at an even stride; null takes them all."""
    batch: PositiveInt = 8


class EvaluationConfig(Section):
    """Frechet distances and prompt accuracy of student and teacher, on prompts not used in training."""

    prompts: PathName
    judge: JudgeName = "digits"
    """``digits`` (the embedded one) or ``clip:FOLDER`` for a transformers CLIP model folder."""
    samples: Annotated[int, Field(ge=4)] = 1000
    batch: PositiveInt = 50
    pictures: PositiveInt = 8
    """Pictures per bucket kept for the report."""
