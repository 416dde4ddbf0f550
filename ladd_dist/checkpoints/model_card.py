"""The README.md of an exported student: what it is, what it is made of, how good it is, how to draw with it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.folders import checkpoints_of
from ladd_dist.checkpoints.reader import RunState
from ladd_dist.config import Config
from ladd_dist.data.mds import Manifest
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.files.disk import real_path
from ladd_dist.methods.registry import method_of
from ladd_dist.models.family import Drawing
from ladd_dist.models.licence import Licence
from ladd_dist.models.lora import Scaled, called
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start

_CARD = """---
{keys}---
# {title}

{kind} of {teacher}, {trained} with ladd_dist{start},
{iterations} iterations ({weights} weights).
{changed}.
{merged}
{usage}

## How good it is

{scores}

## What it was trained on

{data}

## Licence

{licence}
"""
PICTURES = "pictures.png"
"""What the card shows, beside it."""


@dataclass(frozen=True)
class Scores:
    """How an evaluation judged the exported weights.

    Attributes:
        text: Markdown.
        pictures: some of those that were judged.
    """

    text: str
    pictures: Image.Image


def model_card(
    config: Config, name: str, state: RunState, weights: str, changed: Changed, example: PromptEntry,
    loras: Sequence[Scaled], licence: Licence, scores: Scores | None,
) -> str:  # fmt: skip
    """Markdown with a call that draws ``example``, see `Family.usage`.

    Args:
        name: of the export's folder.
        state: of the run when the weights were saved.
        weights: ``ema`` or ``student``.
        changed: how many of them training has changed.
        loras: merged into it, beside its own.
        licence: the teacher's, whose files are to lie beside the card.
        scores: of these weights, if they were evaluated.
    """
    as_teacher = config.method.draws_as_teacher
    steps, guidance = (
        (config.synthesis.steps, config.synthesis.guidance) if as_teacher else (len(config.method.times()), 1.0)
    )
    drawing = Drawing(name, example.prompt, example.bucket.height, example.bucket.width, steps, guidance)
    teacher = teacher_name(config.teacher.path)
    return _CARD.format(
        keys=yaml.safe_dump(_keys(config, drawing, teacher, licence), sort_keys=False, allow_unicode=True),
        title=" ".join(name.split()),
        kind="A fine-tuned copy" if as_teacher else "A few-step student",
        teacher=_span(teacher),
        trained=method_of(config).TRAINED,
        start=_start(config),
        iterations=state.iteration,
        weights=weights,
        changed=changed,
        merged=_merged(loras),
        usage=family_of(config.teacher.path).usage(config.teacher, config.method, drawing).rstrip(),
        scores=f"{scores.text}\n\n![Pictures]({PICTURES})" if scores else "These weights were not evaluated.",
        data=_data(state.dataset, _span(teacher)),
        licence=_licence(licence, _span(teacher)),
    )


def _keys(config: Config, drawing: Drawing, teacher: str, licence: Licence) -> dict[str, Any]:
    """What the hub reads; servers look at ``inference``."""
    defaults = {"num_inference_steps": drawing.steps, "guidance_scale": drawing.guidance}
    defaults |= family_of(config.teacher.path).arguments(config.teacher)
    base = {"base_model": teacher} if "/" in teacher else {}
    return {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **licence.keys,
        **base,
        "inference": {"parameters": defaults},
    }


def _data(dataset: Manifest | None, teacher: str) -> str:
    """Where the training's samples are from."""
    if dataset is None:
        return "The checkpoint, an older one, does not say."
    made, counts = dataset.provenance, ", ".join(f"{count:,} of {name}" for name, count in dataset.counts.items())
    prompts = f"their prompts are from a file whose SHA-256 begins with `{made.prompts}`"
    drawn = (
        f"{teacher} drew them in {made.steps} steps at guidance {made.guidance:g}, seed {made.seed}, in "
        f"{made.precision}, {made.images_per_prompt} of each prompt; {prompts}"
    )
    kind, _, source = (made.pairs or "").partition(":")
    if kind == "table":
        what, where = "pairs of given pictures", f"they are from the table {_span(source)}, `{made.prompts}`"
    elif kind == "rank":
        what, where = f"pairs of the teacher's own pictures, ranked by {_span(source)}", drawn
    elif made.steps:
        what, where = "synthetic latents", drawn
    else:
        what, where = "latents of given pictures", f"they are from a table, `{made.prompts}`"
    return f"{sum(dataset.counts.values()):,} {what} ({counts}): {where}."


def _licence(licence: Licence, teacher: str) -> str:
    files = ", ".join(f"[{file.name}]({file.name})" for file in licence.files)
    beside = f" Its text is beside this file: {files}." if files else ""
    if licence.name is None and not files:
        return (
            f"These weights are derived from {teacher}, whose folder names no licence: find out what its publisher "
            "allows before you pass them on."
        )
    called = f", {_span(licence.name)}" if licence.name else ""
    return f"These weights are derived from {teacher}, whose licence{called}, applies to them.{beside}"


def _start(config: Config) -> str:
    """What a student was made of that did not begin as the whole teacher."""
    start = Start.of(config)
    folder = _span(teacher_name(start.folder))
    if start.kept:
        return f" from {start.kept} of {folder}"
    return f" from {folder}" if config.student.path else ""


def _merged(loras: Sequence[Scaled]) -> str:
    """A paragraph on adapters of other trainings."""
    if not loras:
        return ""
    names = ", ".join(map(_span, called([(replace(lora, name=_lora_name(lora.name)), n) for lora, n in loras])))
    return f"\nMerged into it are adapters, whose own data and licences apply, too: {names}.\n"


def _lora_name(path: str) -> str:
    """What a file of adapters or a checkpoint is called, after its folder or run: its own name may say little."""
    folder, name = Path(path).parent, Path(path).name
    run = folder.parent
    return f"{teacher_name(str(run if folder == checkpoints_of(run) else folder))}/{name}"


def teacher_name(path: str) -> str:
    """What a teacher's folder is called: its name, or ``org/name`` for a snapshot in the hub's cache."""
    folder = Path(os.path.abspath(os.path.expanduser(path)))  # a link's own name says more than its target's
    for found in (folder, real_path(path)):
        if found.parent.name == "snapshots" and found.parent.parent.name.startswith("models--"):
            return "/".join(found.parent.parent.name.split("--")[1:])
    return folder.name or str(folder)


def _span(text: str) -> str:
    """A text as code in Markdown's running text."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * text.startswith("`") or " " * text.endswith("`")
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"
