"""The trained student, put back together from a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ladd_dist.checkpoints.lora import lora_of_checkpoint
from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import DamagedError, LaddError
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.fingerprint import is_of
from ladd_dist.models.lora import MergedWeights, Scaled
from ladd_dist.models.start import Start

Weights = Literal["ema", "student"]


def open_checkpoint(config: Config, world: World, path: str | None = None) -> Checkpoint:
    """Open the given checkpoint folder, or the newest whole one of ``run_dir``.

    Raises:
        LaddError: if there is none, or if it is damaged.
    """
    if path and not Path(path).is_dir():
        raise LaddError(f"no checkpoint at {path}: run launchers/train.py first")
    try:
        found = Checkpoint(Path(path), world) if path else open_newest(config.run_dir, world)
    except DamagedError as error:
        raise LaddError(f"{error}: pass another --checkpoint") from None
    if found is None:
        raise LaddError(f"no checkpoint at {config.run_dir}/checkpoints: run launchers/train.py first")
    return found


class TrainedStudent:
    """A run's student as it starts, and its trained weights in a checkpoint.

    A checkpoint holds what is trained of a student; all else is still what it starts as. Adapters are merged.

    Args:
        weights: averaged (``ema``) or last (``student``) ones.
        loras: adapters of other trainings to add.

    Attributes:
        start: what it starts as, without adapters.
        network: without storage.
        trained: what differs from the start, fp32, by name in ``network``; each is made when it is asked for.

    Raises:
        LaddError: if the checkpoint is of another network than the configuration's, or trained at other times, by
            another teacher, with another length of its text or from other layers, if it draws in many steps alone, or
            if an adapter is of another base.
    """

    def __init__(
        self, config: Config, checkpoint: Checkpoint, weights: Weights, loras: Sequence[Scaled] = ()
    ) -> None:
        check_training(config, checkpoint)
        if not config.method.few_steps:
            raise LaddError(
                f"checkpoint {checkpoint.path} tunes a base, which needs many steps: draw with its adapters on a "
                "student, by that run's configuration and --lora, or write them by export.py --format lora"
            )
        start, trained = Start.of(config), checkpoint.network(weights)
        parameters = {name: parameter.shape for name, parameter in start.on_meta().named_parameters()}
        for name in [*checkpoint.network("student"), *trained] or ["all"]:
            if name not in trained or parameters.get(name) != trained.shapes[name]:
                raise LaddError(
                    f"checkpoint {checkpoint.path} does not fit the student at {start.folder} "
                    f"({name} differs): pass the run's own config.yaml"
                )
        self.start = replace(start, lora=None)
        self.network = self.start.on_meta()
        base = dict(self.network.named_parameters())
        for lora, _ in loras:
            if lora.kept is not None and not config.student.path and lora.kept != self.start.kept:
                raise LaddError(
                    f"{lora.name} was trained on {lora.kept or 'all layers'} of its teacher, and this student is "
                    f"made of {self.start.kept or 'all'}: its layers have other numbers"
                )
            if lora.base is not None and not is_of(config.teacher.path, lora.base):
                raise LaddError(
                    f"{lora.name} was trained on teacher {lora.base}, which is not teacher.path="
                    f"{config.teacher.path}: give one of this teacher"
                )
            lora.check(base)
        whole: Mapping[str, Tensor] = trained
        if start.lora:
            whole, loras = {}, [(lora_of_checkpoint(checkpoint, weights), 1.0), *loras]
        self.trained = MergedWeights(self.start.weights(), whole, loras)


def load_student(
    config: Config, checkpoint: Checkpoint, weights: Weights, dtype: torch.dtype, loras: Sequence[Scaled] = ()
) -> Backbone:
    """The student on the CPU with the averaged (``ema``) or the last (``student``) weights, adapters merged.

    Raises:
        LaddError: as `TrainedStudent`.
    """
    trained = TrainedStudent(config, checkpoint, weights, loras)
    student = trained.start.load(dtype)
    parameters = dict(student.named_parameters())
    for name, weight in trained.trained.items():
        parameters[name].data.copy_(weight)
    return student.requires_grad_(False).eval()


def check_training(config: Config, checkpoint: Checkpoint) -> None:
    """Check that the student was trained to be drawn as the configuration says.

    Raises:
        LaddError: naming the setting that differs, or the teacher.
    """
    trained = checkpoint.config
    for key, before, now in (
        ("method.student_times", trained.method.student_times, config.method.student_times),
        ("teacher.max_t5_tokens", trained.teacher.max_t5_tokens, config.teacher.max_t5_tokens),
        ("student.layers", trained.student.layers, config.student.layers),
        ("student.heads", trained.student.heads, config.student.heads),
        ("student.lora", trained.student.lora, config.student.lora),
    ):
        if before != now:
            raise LaddError(
                f"checkpoint {checkpoint.path} was trained with {key}={before}, but this configuration "
                f"has {now}: pass the run's own config.yaml"
            )
    checkpoint.check_start(config)
    if not is_of(config.teacher.path, checkpoint.state.teacher):
        raise LaddError(
            f"checkpoint {checkpoint.path} was trained with teacher {checkpoint.state.teacher}, which is not at "
            f"teacher.path={config.teacher.path}: restore that teacher, or name the folder that it is in"
        )
