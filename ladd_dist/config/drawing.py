"""What is drawn, by the teacher for training and by the student to look at."""

from typing import Annotated

from pydantic import Field

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, EachOnce, Guidance, JudgeName, PathName, PictureCount, StepCount

BucketName = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]


class SynthesisConfig(Section):
    """Offline generation of the training latents with the guided teacher."""

    prompts: PathName
    """``.jsonl`` with ``prompt`` and optional ``bucket``, or ``.txt`` with one prompt per line."""
    buckets: Annotated[list[BucketName], Field(min_length=1), EachOnce]
    """Aspect-ratio buckets, ``HEIGHTxWIDTH`` in pixels; prompts without one are dealt to them in turn."""
    images_per_prompt: PictureCount = 1
    steps: StepCount = 28
    guidance: Guidance = 4.5
    batch: Count = 8
    part_samples: Count = 512
    """Samples of a part: the unit that a rank claims, writes whole and never repeats."""


class SamplingConfig(Section):
    """Few-step sampling with the student."""

    steps: StepCount | None = None
    """A divisor of the number of ``method.student_times``, which are taken at an even stride; null takes them all."""
    batch: Count = 8


class EvaluationConfig(Section):
    """Frechet distances and prompt accuracy of student and teacher, on prompts not used in training."""

    prompts: PathName
    judge: JudgeName = "digits"
    """``digits`` (the embedded one), ``clip:FOLDER`` for a transformers CLIP model folder, or ``teacher`` for the
    teacher's own features, in which distances are measured in any case."""
    scorers: Annotated[list[str], EachOnce] = Field(default=[])
    """Also to give a number to each picture, whose mean is a score: ``clip:FOLDER`` for the CLIP score, another name,
    or ``MODULE:FUNCTION``, as of `pairs.py`."""
    reference: PathName | None = None
    """A folder of pictures, such as photographs, to which the judge also measures distances."""
    samples: Annotated[PictureCount, Field(ge=4)] = 1000
    """Pictures per set: the prompts in turn, again from the first with other noise after the last."""
    samples_in_training: Annotated[PictureCount, Field(ge=4)] = 250
    """The same of evaluations by ``train.evaluate_every``."""
    images_per_prompt: PictureCount = 1
    """Pictures of a prompt before the next one's turn; diversity is measured where a prompt has two in all."""
    batch: Count = 50
    pictures: PictureCount = 8
    """Pictures per bucket kept for the report."""
