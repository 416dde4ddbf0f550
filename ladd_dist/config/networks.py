"""Teacher, student and discriminator heads: where they come from and how they run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import (
    Ascending,
    Count,
    CountOrZero,
    EachOnce,
    PathName,
    PositiveNumber,
    Recomputation,
    Width,
)


class TeacherConfig(Section):
    """The frozen network: teacher of the data and backbone of the discriminator."""

    path: PathName
    """A diffusers folder with ``transformer/``, ``vae/``, ``scheduler/``, text encoders and tokenizers.

    T5 may be absent."""
    placement: Literal["replicate", "shard"] = "replicate"
    """Whole on every rank (no traffic) or sharded by the engine (least memory)."""
    activation_checkpointing: Recomputation = False
    """What its backward pass computes again instead of keeping it: nothing, the blocks, or with ``selective`` the
    blocks but for attention and the narrower matrix products. docs/planning.md has what each takes."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the blocks, once for all of one kind and for every aspect ratio; ``auto`` does it on a CPU, where
    the run is long enough to earn it back. docs/speed.md has the measurements."""
    float8: bool = False
    """Hold the linear layers that every token passes in 8 bits and multiply in 8 bits, forward and backward: a third
    less memory, and tensor cores of twice the speed (capability 8.9 and up). Not where it is sharded."""
    max_t5_tokens: Annotated[int, Field(ge=1, le=512)] = 256
    """T5 tokens appended to the 77 of CLIP; zeros where the teacher has no T5. The pipeline takes 512 at most.
    What draws says how many prompts are longer."""


class LoraConfig(Section):
    """Low-rank adapters, the only trained parameters of a student that has them (arXiv 2106.09685)."""

    rank: Width = 256
    alpha: PositiveNumber | None = None
    """What an adapter adds is scaled by alpha / rank; null is the rank."""
    targets: Annotated[list[str], Field(min_length=1), EachOnce] | None = None
    """Linear layers that get one, by the last parts of their names, such as ``attn.to_q``; null is all of them."""

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class StudentConfig(Section):
    """The network that is trained."""

    path: PathName | None = None
    """A diffusers folder to start from; null starts from a copy of the teacher."""
    layers: Annotated[list[CountOrZero], Field(min_length=1), Ascending] | None = None
    """Transformer blocks of that folder that the student starts with, in their order; null means every block."""
    heads: Count | None = None
    """Attention heads that it starts with, the first ones of every block, and so its width; null means every head.

    A number and not a list: heads of one number in several blocks have nothing to do with each other, and neither
    have heads and the residual stream's channels, of which the same share is kept."""
    lora: LoraConfig | None = None
    """Train adapters on the frozen start instead of the whole network. If that is the teacher, it is kept once, and
    is student, teacher and backbone of the discriminator: the least memory."""
    activation_checkpointing: Recomputation = False
    """As the teacher's."""
    compile: bool | Literal["auto"] = "auto"
    """As the teacher's."""
    float8: bool = False
    """Multiply in 8 bits in the linear layers that every token passes, forward and for the input's gradient. Weights,
    their gradients and what is kept stay as they are. Not of adapters, nor under ZeRO-3."""

    @property
    def starts_as_teacher(self) -> bool:
        """Whether it is a copy of the teacher before it is trained."""
        return self.path is self.layers is self.heads is None

    @property
    def is_teachers_base(self) -> bool:
        """Whether the frozen start, which it adapts, is the teacher."""
        return self.lora is not None and self.starts_as_teacher


class DiscriminatorConfig(Section):
    """Conv heads on the frozen teacher's blocks (design: 1x1 to ``width``, 3x3, 3x3 to ``out_width``, logit)."""

    blocks: Annotated[list[CountOrZero], EachOnce] | None = None
    """Transformer blocks that carry a head; null means every block. The teacher is built up to the last of them."""
    width: Width = 256
    out_width: Width = 128
    groups: Width = 32
    """GroupNorm groups; divides both widths."""
    cond_width: Width = 256
    """Width of the shared embedding of noise level and pooled text."""
    conditioned: bool = True
    """Whether logits depend on noise level and pooled text, beside what the features tell of them."""
    student_time: bool = False
    """Whether logits also depend on the time from which the student drew, of real latents its time for that sample.
    Heads that are not told (the paper's) judge the mixture of its times, in which one can make up for another."""
    convolve: Literal["grid", "line"] = "grid"
    """Over the picture's grid of tokens, or over their sequence row by row, as if they had none (the paper's other
    choice, which does not know what is above what)."""
    kept_features: Count = 8
    """Blocks whose features are held at a time where the teacher runs without graph: so many heads learn together."""

    @model_validator(mode="after")
    def _groups_divide(self) -> "DiscriminatorConfig":
        if self.width % self.groups or self.out_width % self.groups:
            raise ValueError(f"groups={self.groups} must divide width={self.width} and out_width={self.out_width}")
        return self

    @model_validator(mode="after")
    def _told_by_conditioning(self) -> "DiscriminatorConfig":
        if self.student_time and not self.conditioned:
            raise ValueError("student_time=true is told to conditioned heads: set conditioned=true")
        return self


class KernelsConfig(Section):
    """Which implementation computes what; a name that cannot run where the run is placed is an error."""

    attention: Literal["auto", "triton", "flash", "cudnn", "efficient"] = "auto"
    """Of student and teacher: this repository's fused kernel, or diffusers' own over the named one of PyTorch's.
    ``auto`` takes what `kernels.bench` found fastest on this GPU, ``flash`` where nothing was measured (or, if that
    cannot run, ``efficient``), diffusers' as it is on the CPU, and says at start what it picked and why."""
    heads: Literal["auto", "triton", "torch"] = "auto"
    """The discriminator's heads and their losses: this repository's kernels or PyTorch's grouped convolutions.
    ``auto`` takes the kernels on GPUs where `kernels.bench` found them faster. R1's pass is PyTorch's always."""
