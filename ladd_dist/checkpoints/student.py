"""The trained student, put back together from a checkpoint for inference."""

from pathlib import Path
from typing import Literal

import torch

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import DamagedError, LaddError
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.fingerprint import is_of
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


def load_student(config: Config, checkpoint: Checkpoint, weights: Weights, dtype: torch.dtype) -> Backbone:
    """The student on the CPU with the averaged (``ema``) or the last (``student``) weights.

    Raises:
        LaddError: if the checkpoint is of another network than the configuration's, or trained at other times, by
            another teacher, with another length of its text or from other layers.
    """
    trained = checkpoint.config
    for key, before, now in (
        ("method.student_times", trained.method.student_times, config.method.student_times),
        ("teacher.max_t5_tokens", trained.teacher.max_t5_tokens, config.teacher.max_t5_tokens),
        ("student.layers", trained.student.layers, config.student.layers),
        ("student.heads", trained.student.heads, config.student.heads),
    ):
        if before != now:
            raise LaddError(
                f"checkpoint {checkpoint.path} was trained with {key}={before}, but this configuration "
                f"has {now}: pass the run's own config.yaml"
            )
    if not is_of(config.teacher.path, checkpoint.state.teacher):
        raise LaddError(
            f"checkpoint {checkpoint.path} was trained with teacher {checkpoint.state.teacher}, which is not at "
            f"teacher.path={config.teacher.path}: restore that teacher, or name the folder that it is in"
        )
    start = Start.of(config)
    student = start.load(dtype)
    state = checkpoint.network(weights)
    for name, parameter in student.named_parameters():
        if name not in state or state[name].shape != parameter.shape:
            raise LaddError(
                f"checkpoint {checkpoint.path} does not fit the student at "
                f"{start.folder} ({name} differs): pass the run's own config.yaml"
            )
        parameter.data.copy_(state[name])
    return student.requires_grad_(False).eval()
