"""The run's configuration: one strict schema for every launcher, YAML files and dotted overrides.

``load(path, ["train.iterations=5", "engine=fsdp2"])`` reads a file, applies overrides in order and validates.
A key that the schema does not know, a value of the wrong type and a combination that cannot run are
`LaddError`s that name the key; nothing is guessed or ignored.
"""

import difflib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from ladd_dist.errors import LaddError
from ladd_dist.values import JudgeName, PathName, Seed
from ladd_dist.yaml_strict import override, read_yaml, write_yaml

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
BucketName = Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]
StepCount = Annotated[int, Field(ge=1, le=1000)]


class Section(BaseModel):
    """Base of every section: unknown keys, silent type coercions and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TeacherConfig(Section):
    """The frozen network: teacher of the data and backbone of the discriminator."""

    path: PathName
    """A diffusers folder with ``transformer/``, ``vae/``, ``scheduler/``, text encoders and tokenizers.

    T5 may be absent."""
    placement: Literal["replicate", "shard"] = "replicate"
    """Whole on every rank (no traffic) or sharded by the engine (least memory)."""
    activation_checkpointing: bool = False
    compile: bool = False
    """torch.compile the blocks, once for all of one kind and for every aspect ratio."""
    max_t5_tokens: Annotated[int, Field(ge=1, le=512)] = 256
    """T5 tokens appended to the 77 of CLIP; zeros where the teacher has no T5. The pipeline takes 512 at most."""


class StudentConfig(Section):
    """The network that is trained."""

    path: PathName | None = None
    """A diffusers folder to start from; null starts from a full-size copy of the teacher."""
    activation_checkpointing: bool = False
    compile: bool = False


class Fsdp2Config(Section):
    """PyTorch FSDP2; every transformer block is a unit of its own."""

    replicas: PositiveInt = 1
    """Copies of the sharded network (HSDP): above 1, ranks shard within a copy and average between copies."""
    forward_prefetch: NonNegativeInt = 0
    """Blocks gathered ahead in the forward pass; 0 leaves the order to FSDP, which overlaps one."""
    backward_prefetch: NonNegativeInt = 0
    """The same for the backward pass."""


class Zero3Config(Section):
    """DeepSpeed ZeRO-3."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, fp32 masters and moments, or the partitioned weights too."""


class DiscriminatorConfig(Section):
    """Conv heads on the frozen teacher's blocks (design: 1x1 to ``width``, 3x3, 3x3 to ``out_width``, logit)."""

    blocks: list[NonNegativeInt] | None = None
    """Transformer blocks that carry a head; null means every block. The teacher is built up to the last of them."""
    width: PositiveInt = 256
    out_width: PositiveInt = 128
    groups: PositiveInt = 32
    """GroupNorm groups; divides both widths."""
    cond_width: PositiveInt = 256
    """Width of the shared embedding of noise level and pooled text."""
    kept_features: PositiveInt = 8
    """Blocks whose features are held at a time where the teacher runs without graph: so many heads learn together."""

    @model_validator(mode="after")
    def _groups_divide(self) -> "DiscriminatorConfig":
        if self.width % self.groups or self.out_width % self.groups:
            raise ValueError(f"groups={self.groups} must divide width={self.width} and out_width={self.out_width}")
        return self


class MethodConfig(Section):
    """LADD itself (arXiv 2403.12015)."""

    student_times: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [1.0, 0.75, 0.5, 0.25]
    """Noise levels of the student's input, descending from 1: it trains, draws and is exported at these alone."""
    warmup_probabilities: list[Probability] = [0.0, 0.0, 0.5, 0.5]
    probabilities: list[Probability] = [0.7, 0.1, 0.1, 0.1]
    warmup_iterations: NonNegativeInt = 500
    renoise_location: float = 1.0
    """Logit-normal location at 4,096 image tokens; shifted to each bucket's own token count."""
    renoise_scale: PositiveFloat = 1.0
    renoise: Literal["independent", "same"] = "independent"
    """Whether real and fake of a pair are judged at noise levels of their own or at the same one."""
    r1_weight: NonNegativeFloat = 0.0
    fake_pass: Literal["shared", "two_pass"] = "shared"
    """One student forward and one teacher pass over the fake for both updates, or the plain order with two."""

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

    @model_validator(mode="after")
    def _descend(self) -> "MethodConfig":
        times = self.student_times
        if times[0] != 1:
            raise ValueError(f"student_times must begin with 1, the pure noise that drawing begins with, not {times}")
        if any(now <= after for now, after in pairwise(times)):
            raise ValueError(f"student_times must descend, each once, not {times}")
        return self

    @model_validator(mode="after")
    def _distributions(self) -> "MethodConfig":
        for key in ("warmup_probabilities", "probabilities"):
            values = getattr(self, key)
            if len(values) != len(self.student_times):
                raise ValueError(f"{key} needs one entry for each of the {len(self.student_times)} student_times")
            if abs(sum(values) - 1) > 1e-6:
                raise ValueError(f"{key} must sum to 1, not {sum(values):g}")
        return self


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then constant or cosine decay to ``final_lr_ratio * lr``."""

    lr: PositiveFloat
    state: Literal["fp32", "8bit"] = "fp32"
    """Precision of AdamW's moments; 8bit (torchao, blocks of 256) needs a GPU."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.0, 0.99]
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_iterations: NonNegativeInt = 0
    decay: Literal["constant", "cosine"] = "constant"
    final_lr_ratio: Probability = 0.0
    clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""


class TrainConfig(Section):
    """The loop."""

    iterations: PositiveInt
    global_batch: PositiveInt
    """Samples per iteration over all ranks and micro-batches."""
    micro_batch: PositiveInt | None = None
    """Samples per rank and forward pass; null takes the rank's whole share of the global batch."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; trainable parameters and optimizer state are fp32 always."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    ema_device: Literal["same", "cpu"] = "same"
    """Keep the averaged weights beside the student's, or in host memory at the cost of a copy per iteration."""
    max_skipped: PositiveInt = 20
    """Iterations in a row that may be skipped for a non-finite loss or gradient before the run stops."""
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    preview_every: NonNegativeInt = 0
    """Iterations between picture sheets of the student; 0 draws none."""
    hang_timeout: PositiveFloat = 900.0
    """Seconds without progress on any rank after which the job ends, naming who is behind. Must exceed the longest
    phase: loading the networks, writing a checkpoint."""

    @model_validator(mode="after")
    def _divides(self) -> "TrainConfig":
        if self.micro_batch and self.global_batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} must divide global_batch={self.global_batch}")
        if self.checkpoint_every % self.log_every:
            # Or the first row after a resume would average fewer iterations than in an uninterrupted run.
            raise ValueError(f"log_every={self.log_every} must divide checkpoint_every={self.checkpoint_every}")
        return self


class DataConfig(Section):
    """Where the synthetic latents are written and read."""

    path: PathName
    shuffle_seed: Seed = 0
    workers: NonNegativeInt = 0
    """Loader processes per rank."""


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


class KernelsConfig(Section):
    """Which implementation computes what; a name that cannot run where the run is placed is an error."""

    attention: Literal["auto", "triton", "sdpa"] = "auto"
    """Of student and teacher: this repository's fused kernel or diffusers' own over PyTorch's SDPA. ``auto`` takes
    the kernel on GPUs where `kernels.bench` found it faster, and says at start what it picked and why."""
    heads: Literal["auto", "triton", "torch"] = "auto"
    """The discriminator's heads and their losses: this repository's kernels or PyTorch's grouped convolutions.
    ``auto`` takes the kernels on GPUs where `kernels.bench` found them faster. R1's pass is PyTorch's always."""


class TrackingConfig(Section):
    """``metrics.jsonl`` is the record; W&B mirrors it when asked to."""

    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "ladd_dist"


class ProfileConfig(Section):
    """A torch.profiler trace per rank, of the configured iterations or, at any time, on SIGUSR2."""

    start: NonNegativeInt | None = None
    """First iteration of the trace; null traces on SIGUSR2 alone."""
    iterations: PositiveInt = 3


class Config(Section):
    """Everything a run needs. One file serves synthesis, training, sampling, evaluation and export."""

    run_dir: PathName
    seed: Seed = 0
    engine: Literal["local", "fsdp2", "zero3"] = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` uses a GPU when there is one."""
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    fsdp2: Fsdp2Config = Fsdp2Config()
    zero3: Zero3Config = Zero3Config()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    method: MethodConfig = MethodConfig()
    student_optimizer: OptimizerConfig
    head_optimizer: OptimizerConfig
    train: TrainConfig
    data: DataConfig
    synthesis: SynthesisConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig
    kernels: KernelsConfig = KernelsConfig()
    tracking: TrackingConfig = TrackingConfig()
    profile: ProfileConfig = ProfileConfig()

    @model_validator(mode="after")
    def _engine_settings(self) -> "Config":
        """A setting that the chosen engine does not read is an error, as any other key that nothing reads."""
        for name, section in (("fsdp2", self.fsdp2), ("zero3", self.zero3)):
            defaults = type(section)()
            changed = [key for key in type(section).model_fields if getattr(section, key) != getattr(defaults, key)]
            if changed and self.engine != name:
                raise ValueError(f"{name}.{changed[0]} is only read by engine={name}, but engine={self.engine}")
        if self.engine == "zero3":
            self._check_zero3()
        return self

    @model_validator(mode="after")
    def _sampling_steps(self) -> "Config":
        self.method.times(self.sampling.steps)
        return self

    def _check_zero3(self) -> None:
        if self.student_optimizer.state == "8bit":
            reason = "offloads only fp32 state" if self.zero3.offload != "none" else "partitions only fp32 state"
            raise ValueError(f"student_optimizer.state=8bit: engine=zero3 {reason}; set fp32, or engine=fsdp2")
        if self.student.compile or (self.teacher.compile and self.teacher.placement == "shard"):
            raise ValueError("compile=true: the hooks of engine=zero3 cannot be compiled; set engine=fsdp2")

    def micro_batch(self, world_size: int) -> int:
        """Samples per rank and forward pass.

        Raises:
            LaddError: if the ranks cannot share the global batch evenly.
        """
        if self.train.micro_batch is not None:
            return self.train.micro_batch
        if self.train.global_batch % world_size:
            raise LaddError(
                f"train.global_batch={self.train.global_batch} is not a multiple of {world_size} ranks: "
                "change it, or the number of ranks"
            )
        return self.train.global_batch // world_size

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per rank and iteration.

        Raises:
            LaddError: if the ranks cannot share the global batch evenly, or if the shared fake pass would
                have to keep the graphs of several micro-batches alive.
        """
        batch, micro = self.train.global_batch, self.micro_batch(world_size)
        if batch % (micro * world_size):
            raise LaddError(
                f"train.global_batch={batch} is not a multiple of train.micro_batch={micro} x {world_size} ranks: "
                f"set train.micro_batch to a divisor of {batch / world_size:g}, or change the number of ranks"
            )
        count = batch // (micro * world_size)
        if count > 1 and self.method.fake_pass == "shared":
            raise LaddError(
                f"method.fake_pass=shared needs the whole batch in one micro-batch, but train.micro_batch={micro} "
                f"makes {count}: set method.fake_pass=two_pass, or train.micro_batch={batch // world_size}"
            )
        return count

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML that `load` reads back to an equal one."""
        write_yaml(path, self.model_dump())


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML) and validate.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    tree = read_yaml(Path(path))
    for setting in overrides or []:
        override(tree, setting)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise LaddError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first problem in one line, with a suggestion where a key is mistyped."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_suggest(first['loc'])}"
    if first["type"] == "missing":
        return f"missing key '{key}': add it to the file or pass {key}=VALUE"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{key or 'config'}: {message[0].lower()}{message[1:]}{got}"


def _suggest(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f": did you mean '{close[0]}'?" if close else f": known keys here are {', '.join(known)}"
