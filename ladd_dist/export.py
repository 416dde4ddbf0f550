"""A trained student as a diffusers folder that `StableDiffusion3Pipeline.from_pretrained` loads."""

import json
import shutil
from pathlib import Path

import torch

from ladd_dist.checkpoint import Checkpoint
from ladd_dist.config import Config
from ladd_dist.data.prompts import Request
from ladd_dist.disk import copy_tree
from ladd_dist.folders import check_replaceable, replacing
from ladd_dist.model_card import model_card
from ladd_dist.places import own_place
from ladd_dist.student import Weights, load_student


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
    example: Request,
    overwrite: bool = False,
) -> Path:
    """Write the teacher's folder with the student's weights in the place of the transformer's.

    The scheduler becomes the student's sampler: unshifted times, and fresh noise between steps.

    Args:
        weights: ``ema`` or ``student``.
        dtype: of the saved weights.
        example: what the model card draws.
        overwrite: replace an earlier export at ``folder``, once this one is whole.

    Returns:
        The folder's real path.

    Raises:
        LaddError: as `export_place`, or if it cannot be written; what was there is left as it was.
    """
    folder = export_place(config, folder, overwrite)
    with replacing(folder, "export", overwrite) as temporary:
        _write(temporary, config, checkpoint, weights, dtype)
        card = model_card(config, folder.name, checkpoint.state.iteration, weights, example)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder


def _write(folder: Path, config: Config, checkpoint: Checkpoint, weights: Weights, dtype: torch.dtype) -> None:
    copy_tree(Path(config.teacher.path), folder, shutil.ignore_patterns("transformer", "*.md", "build.json", ".*"))
    net = load_student(config, checkpoint, weights, dtype).net
    net.save_pretrained(folder / "transformer", safe_serialization=True)

    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text())
    settings |= {"shift": 1.0, "use_dynamic_shifting": False, "stochastic_sampling": True}
    scheduler.write_text(json.dumps(settings, indent=2) + "\n")
