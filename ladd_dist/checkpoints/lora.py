"""Trained adapters that are to be added to a student: of another run's checkpoint, or of a file."""

import math
from collections.abc import Sequence
from pathlib import Path

from ladd_dist.checkpoints.folders import checkpoints_of
from ladd_dist.checkpoints.reader import CONFIG, Checkpoint, open_newest
from ladd_dist.config.values import expand_path
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.models.adapters import layer_of
from ladd_dist.models.lazy import LazyTensors
from ladd_dist.models.lora import Lora, Scaled
from ladd_dist.models.lora_file import lora_of_file
from ladd_dist.models.start import Start


def lora_of_checkpoint(checkpoint: Checkpoint, weights: str) -> Lora:
    """The adapters that a run has trained.

    Args:
        weights: ``ema`` or ``student``.

    Raises:
        LaddError: if it trains none.
    """
    lora = checkpoint.config.student.lora
    if lora is None:
        name = checkpoint.config.method.name
        raise LaddError(
            f"checkpoint {checkpoint.path} (method.name={name}) has no adapters: give one with student.lora"
        )
    state = checkpoint.network(weights)
    downs, ups = ({layer_of(n): n for n in state if part in n} for part in (".lora_A.", ".lora_B."))
    return Lora(
        name=str(checkpoint.path),
        base=checkpoint.state.teacher,
        kept=None if checkpoint.config.student.path else Start.of(checkpoint.config).kept,
        downs=LazyTensors(downs, lambda name: state[downs[name]]),
        ups=LazyTensors(ups, lambda name: state[ups[name]]),
        scales=dict.fromkeys(downs, lora.scale),
    )


def open_loras(given: Sequence[Sequence[str]], world: World, weights: str) -> list[Scaled]:
    """The adapters that a command line names.

    Args:
        given: for each a path and, or not, a scale.
        weights: ``ema`` or ``student``, of those that are a run's.

    Raises:
        LaddError: naming the one that cannot be opened.
    """
    return [(_open(Path(expand_path(path)), world, weights), _scale(path, *rest)) for path, *rest in given]


def _open(path: Path, world: World, weights: str) -> Lora:
    if path.is_file():
        return lora_of_file(path)
    if path.is_dir() and (path / CONFIG).is_file() and not checkpoints_of(path).is_dir():
        return lora_of_checkpoint(Checkpoint(path, world), weights)
    found = open_newest(path, world)
    if found is None:
        raise LaddError(f"--lora {path} is no safetensors file, and no folder of a checkpoint or a run: give one")
    return lora_of_checkpoint(found, weights)


def _scale(path: str, *given: str) -> float:
    try:
        (scale,) = map(float, given or ("1",))
    except ValueError:
        raise LaddError(f"--lora {path} {' '.join(given)}: give a path and, if it is not 1, one number") from None
    if not math.isfinite(scale):
        raise LaddError(f"--lora {path}: {scale} is no scale")
    return scale
