"""A trained student as a diffusers folder, for the pipeline of its family, as a single file, or as adapters."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.lora import lora_of_checkpoint
from ladd_dist.checkpoints.model_card import PICTURES, Scores, model_card
from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import TrainedStudent, Weights, check_training
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.files.places import own_place
from ladd_dist.log import log, warn
from ladd_dist.models.folder import copy_pipeline
from ladd_dist.models.licence import Licence
from ladd_dist.models.lora import Scaled
from ladd_dist.models.lora_file import save_lora
from ladd_dist.models.registry import family_of
from ladd_dist.models.saving import save_weights
from ladd_dist.planning.networks import check_networks

_LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""


def export_place(config: Config, out: str | Path | None, overwrite: bool) -> Path:
    """The folder that `export` is to write, ``RUN_DIR/export`` if None; costs nothing, so ask first.

    Raises:
        LaddError: if it is not to be written, see `own_place` and `check_replaceable`.
    """
    folder = own_place(config, out, "export")
    check_replaceable(folder, "export", overwrite)
    return folder


def export(
    config: Config,
    checkpoint: Checkpoint,
    folder: Path,
    weights: Weights,
    dtype: torch.dtype,
    example: PromptEntry,
    loras: Sequence[Scaled] = (),
    overwrite: bool = False,
    scores: Scores | None = None,
) -> Path:
    """Write the teacher's folder with the student's weights in the place of the transformer's.

    The sampler becomes the student's, whatever the teacher's was, see `Family.write_sampler`, unless what was trained
    draws as the teacher does. Weights pass through memory one by one; a line says how many of them differ from those
    that training started with, once rounded.

    Args:
        weights: ``ema`` or ``student``.
        dtype: of the saved weights.
        example: what the model card draws.
        loras: adapters to merge into it, beside its own.
        overwrite: replace an earlier export at ``folder``, once this one is whole.
        scores: what an evaluation found of the same weights, for the model card.

    Returns:
        The folder's real path.

    Raises:
        LaddError: as `export_place`, or if the configured networks cannot be used, or if it cannot be written; what
            was there is left as it was.
    """
    folder = export_place(config, folder, overwrite)
    check_networks(config)
    student = TrainedStudent(config, checkpoint, weights, loras)
    with replacing(folder, "export", overwrite) as temporary:
        copy_pipeline(Path(config.teacher.path), temporary, without="transformer")
        if not config.method.draws_as_teacher:
            family_of(config.teacher.path).write_sampler(temporary, config.method)
        changed = _write_transformer(temporary / "transformer", student, dtype)
        licence = Licence.of(config.teacher.path)
        card = model_card(config, folder.name, checkpoint.state, weights, changed, example, loras, licence, scores)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for file in licence.files:
            shutil.copyfile(file, temporary / file.name)
        if scores:
            scores.pictures.save(temporary / PICTURES)
    _tell(changed, config)
    return folder


def export_lora(
    config: Config,
    checkpoint: Checkpoint,
    folder: Path,
    weights: Weights,
    dtype: torch.dtype,
    overwrite: bool = False,
) -> Path:
    """Write a run's own adapters as a file that diffusers' ``load_lora_weights`` and ComfyUI take.

    Returns:
        The file.

    Raises:
        LaddError: as `export`, or if the run trains no adapters.
    """
    folder = export_place(config, folder, overwrite)
    check_networks(config)
    check_training(config, checkpoint)
    lora = lora_of_checkpoint(checkpoint, weights)
    with replacing(folder, "export", overwrite) as temporary:
        save_lora(lora, temporary / _LORA_FILE, dtype)
    return folder / _LORA_FILE


def export_single(
    config: Config,
    checkpoint: Checkpoint,
    folder: Path,
    weights: Weights,
    dtype: torch.dtype,
    loras: Sequence[Scaled] = (),
    overwrite: bool = False,
) -> Path:
    """Write the student's transformer alone, as one file with the names that its family's single files have.

    Weights pass through memory as by `export`; those that are one tensor in the file, together.

    Args:
        weights: ``ema`` or ``student``.
        dtype: of the saved weights.
        loras: adapters to merge into it, beside its own.
        overwrite: replace an earlier export at ``folder``, once this one is whole.

    Returns:
        The file, called as its folder.

    Raises:
        LaddError: as `export`, or if the family has no single files.
    """
    folder = export_place(config, folder, overwrite)
    check_networks(config)
    read = _Reading(TrainedStudent(config, checkpoint, weights, loras), dtype)
    made_of = family_of(config.teacher.path).single_file(read.shapes)

    def joined(name: str) -> Tensor:
        tensor = torch.cat([read(part) for part in made_of[name].parts])
        return torch.cat(tensor.chunk(2)[::-1]) if made_of[name].swapped else tensor

    shapes = {name: _shape([read.shapes[part] for part in made.parts]) for name, made in made_of.items()}
    with replacing(folder, "export", overwrite) as temporary:
        save_weights(temporary, folder.name, shapes, dtype, joined, limit=sys.maxsize)
    _tell(read.changed, config)
    return folder / f"{folder.name}.safetensors"


class _Reading:
    """Reads a student's tensors by their names in a folder's files, and counts the weights that training changed."""

    def __init__(self, student: TrainedStudent, dtype: torch.dtype) -> None:
        self.changed = Changed(dtype)
        self._trained, self._start = student.trained, student.start.weights()
        self._tensors = student.network.file_tensors()
        self.shapes = {key: tensor.shape for key, (_, tensor) in self._tensors.items()}

    def __call__(self, key: str) -> Tensor:
        """The tensor, whole, on the CPU."""
        name, tensor = self._tensors[key]
        before = self._start.read(name, 0, tensor.numel()).view(tensor.shape)
        if name not in self._trained:
            return before
        self.changed.count(now := self._trained[name], before)
        return now


def _write_transformer(folder: Path, student: TrainedStudent, dtype: torch.dtype) -> Changed:
    student.network.save_config(folder)
    read = _Reading(student, dtype)
    save_weights(folder, student.start.family.layout.networks["transformer"], read.shapes, dtype, read)
    return read.changed


def _shape(parts: list[torch.Size]) -> torch.Size:
    """Of tensors one after another along their first dimension."""
    return torch.Size([sum(part[0] for part in parts), *parts[0][1:]])


def _tell(changed: Changed, config: Config) -> None:
    log(str(changed))
    if problem := changed.problem(config.student_optimizer.lr):
        warn(problem)
