"""A trained student as a diffusers folder, for the pipeline of its family."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.lora import lora_of_checkpoint
from ladd_dist.checkpoints.model_card import model_card
from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import TrainedStudent, Weights
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.files.places import own_place
from ladd_dist.log import log, warn
from ladd_dist.models.folder import copy_pipeline
from ladd_dist.models.lora import Scaled
from ladd_dist.models.lora_file import save_lora
from ladd_dist.models.registry import family_of
from ladd_dist.models.saving import save_weights
from ladd_dist.planning.networks import check_networks


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
) -> Path:
    """Write the teacher's folder with the student's weights in the place of the transformer's.

    The sampler becomes the student's, whatever the teacher's was, see `Family.write_sampler`. Weights pass through
    memory one by one; a line says how many of them differ from those that training started with, once rounded.

    Args:
        weights: ``ema`` or ``student``.
        dtype: of the saved weights.
        example: what the model card draws.
        loras: adapters to merge into it, beside its own.
        overwrite: replace an earlier export at ``folder``, once this one is whole.

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
        family_of(config.teacher.path).write_sampler(temporary, config.method)
        changed = _write_transformer(temporary / "transformer", student, dtype)
        card = model_card(config, folder.name, checkpoint.state.iteration, weights, changed, example)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    log(str(changed))
    if problem := changed.problem(config.student_optimizer.lr):
        warn(problem)
    return folder


def lora_place(config: Config, out: str | Path | None, overwrite: bool) -> Path:
    """The folder that `export_lora` is to write, ``RUN_DIR/lora`` if None; costs nothing, so ask first.

    Raises:
        LaddError: as `export_place`.
    """
    folder = own_place(config, out, "lora")
    check_replaceable(folder, "lora", overwrite)
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

    Raises:
        LaddError: as `lora_place`, or if the run trains no adapters, or on other networks than the configured ones.
    """
    folder = lora_place(config, folder, overwrite)
    check_networks(config)
    TrainedStudent(config, checkpoint, weights)
    lora = lora_of_checkpoint(checkpoint, weights)
    with replacing(folder, "lora", overwrite) as temporary:
        save_lora(lora, temporary / "pytorch_lora_weights.safetensors", dtype)
    return folder


def _write_transformer(folder: Path, student: TrainedStudent, dtype: torch.dtype) -> Changed:
    """Write config and weights; no more than one tensor is held at a time, whatever the size of the network."""
    changed, start = Changed(dtype), student.start.weights()
    tensors = student.network.file_tensors()

    def read(key: str) -> Tensor:
        name, tensor = tensors[key]
        before = start.read(name, 0, tensor.numel()).view(tensor.shape)
        if name not in student.trained:
            return before
        changed.count(now := student.trained[name], before)
        return now

    student.network.save_config(folder)
    shapes = {key: tensor.shape for key, (_, tensor) in tensors.items()}
    save_weights(folder, student.start.family.layout.networks["transformer"], shapes, dtype, read)
    return changed
