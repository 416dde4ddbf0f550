"""The whole configuration, and what its sections demand of one another."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from ladd_dist.config.drawing import EvaluationConfig, SamplingConfig, SynthesisConfig
from ladd_dist.config.engines import Fsdp2Config, OptimizerConfig, Zero3Config
from ladd_dist.config.guard import GuardConfig
from ladd_dist.config.method import LaddConfig, MethodConfig
from ladd_dist.config.networks import DiscriminatorConfig, KernelsConfig, StudentConfig, TeacherConfig
from ladd_dist.config.section import Section
from ladd_dist.config.training import DataConfig, ProfileConfig, TrackingConfig, TrainConfig
from ladd_dist.config.values import PathName, Seed
from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import LaddError


class Config(Section):
    """Everything a run needs. One file serves synthesis, training, sampling, evaluation and export."""

    run_dir: PathName
    seed: Seed = 0
    engine: str = "local"
    """How networks are held on the ranks: a name in `engines.registry`, which also checks the settings."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` uses a GPU when there is one."""
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    fsdp2: Fsdp2Config = Fsdp2Config()
    zero3: Zero3Config = Zero3Config()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    method: MethodConfig = LaddConfig()
    student_optimizer: OptimizerConfig
    head_optimizer: OptimizerConfig | None = None
    """Of the discriminator's heads: needed by methods that train them, such as ``ladd``."""
    train: TrainConfig
    guard: GuardConfig = GuardConfig()
    data: DataConfig
    synthesis: SynthesisConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig
    kernels: KernelsConfig = KernelsConfig()
    tracking: TrackingConfig = TrackingConfig()
    profile: ProfileConfig = ProfileConfig()

    @model_validator(mode="after")
    def _method_settings(self) -> "Config":
        """The discriminator's settings belong to methods that have one."""
        if self.method.trains_heads:
            if self.head_optimizer is None:
                raise ValueError("missing key 'head_optimizer': add it to the file or pass head_optimizer=VALUE")
            return self
        given = {
            "discriminator": self.discriminator != DiscriminatorConfig(),
            "head_optimizer": self.head_optimizer is not None,
            "kernels.heads": self.kernels.heads != "auto",
        }
        for key in (key for key, set_ in given.items() if set_):
            raise ValueError(f"{key} is the discriminator's, but method.name={self.method.name} has none: remove it")
        return self

    @model_validator(mode="after")
    def _guarded(self) -> "Config":
        for key in ("on_trouble", "on_collapse"):
            if getattr(self.guard, key) == "lower_head_rate" and not self.method.trains_heads:
                raise ValueError(f"guard.{key}=lower_head_rate, but method.name={self.method.name} trains no heads")
        for name, rule in self.guard.rules.items():
            if rule.of_evaluations and not self.train.evaluate_every:
                raise ValueError(
                    f"guard.rules names {rule.metric} in {name!r}, but train.evaluate_every=0 makes no evaluations: "
                    "set it, or remove the rule"
                )
        return self

    @model_validator(mode="after")
    def _adapters(self) -> "Config":
        if self.method.trains_adapters and self.student.lora is None:
            raise ValueError(f"method.name={self.method.name} trains adapters alone: set student.lora.rank=256")
        return self

    @model_validator(mode="after")
    def _few_steps(self) -> "Config":
        for key in ("preview_every", "evaluate_every"):
            if (every := getattr(self.train, key)) and not self.method.few_steps:
                raise ValueError(
                    f"train.{key}={every} draws in few steps, but method.name={self.method.name} tunes a base that "
                    f"needs many: set train.{key}=0"
                )
        return self

    @model_validator(mode="after")
    def _teacher_settings(self) -> "Config":
        if self.builds_teacher:
            return self
        why = (
            "with student.lora the teacher is the student's base, placed and run as that is"
            if self.student.is_teachers_base
            else f"method.name={self.method.name} builds no frozen teacher"
        )
        for key in ("placement", "activation_checkpointing", "compile", "float8"):
            value, default = getattr(self.teacher, key), TeacherConfig.model_fields[key].default
            if value != default:
                raise ValueError(f"teacher.{key}={value} is of no use: {why}: set teacher.{key}={default}")
        return self

    @model_validator(mode="after")
    def _float8(self) -> "Config":
        """Its products give bf16, and engines shard and gather in the compute precision alone."""
        settings = [
            ("teacher", "train.precision", self.train.precision, "bf16"),
            ("teacher", "teacher.placement", self.teacher.placement, "replicate"),
            ("student", "train.precision", self.train.precision, "bf16"),
        ]
        for network, key, value, needed in settings:
            if getattr(self, network).float8 and value != needed:
                raise ValueError(
                    f"{network}.float8=true, but {key}={value}: set {key}={needed}, or {network}.float8=false"
                )
        if self.student.float8 and self.student.lora:
            raise ValueError(
                "student.float8=true is for a student that is trained whole: set student.lora=null, or "
                "student.float8=false"
            )
        return self

    @model_validator(mode="after")
    def _sampling_steps(self) -> "Config":
        self.method.times(self.sampling.steps)
        return self

    @property
    def builds_teacher(self) -> bool:
        """Whether training has a frozen teacher beside the student, to be placed and run in its own way."""
        return self.method.trains_heads and not self.student.is_teachers_base

    @property
    def most_checkpoints(self) -> int:
        """Checkpoints on the disk at a time, at most: kept ones, the guard's, and one that is being written."""
        return self.train.keep_checkpoints + self.guard.pins(self.train.checkpoint_every) + 1

    def micro_batch(self, world_size: int) -> int:
        """Samples per rank and forward pass.

        Raises:
            LaddError: if the ranks cannot share the global batch evenly.
        """
        return self._share(world_size) if self.train.micro_batch is None else self.train.micro_batch

    def _share(self, world_size: int) -> int:
        batch = self.train.global_batch
        if batch % world_size:
            raise LaddError(
                f"train.global_batch={batch} is not a multiple of {world_size} ranks: change it, or the number of "
                "ranks"
            )
        return batch // world_size

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per rank and iteration.

        Raises:
            LaddError: if the ranks cannot share the global batch evenly, or if the method takes no more than one
                micro-batch (see `MethodSection.whole_batch`).
        """
        share, micro = self._share(world_size), self.micro_batch(world_size)
        if share % micro:
            raise LaddError(
                f"train.global_batch={self.train.global_batch} is not a multiple of train.micro_batch={micro} x "
                f"{world_size} ranks: set train.micro_batch to a divisor of {share}, or change the number of ranks"
            )
        count = share // micro
        if count > 1 and self.method.whole_batch:
            setting, instead = self.method.whole_batch
            raise LaddError(
                f"{setting} needs the whole batch in one micro-batch, but train.micro_batch={micro} "
                f"makes {count}: set {instead}, or train.micro_batch={share}"
            )
        return count

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML that `load` reads back to an equal one."""
        write_yaml(path, self.model_dump())
