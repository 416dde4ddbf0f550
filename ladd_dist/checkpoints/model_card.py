"""The README.md of an exported student: what it is, and, in the words of its family, how to draw with it."""

import os
import re
from pathlib import Path

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.files.disk import real_path
from ladd_dist.methods.registry import method_of
from ladd_dist.models.family import Drawing
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start

# Students draw without guidance, whatever their family. `inference` is where the hub's servers look for defaults.
_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
inference:
  parameters:
    num_inference_steps: {steps}
    guidance_scale: 1.0
---
# {title}

A few-step student of {teacher}, {trained} with ladd_dist{start},
{iterations} iterations ({weights} weights).
{changed}.

{usage}"""


def model_card(
    config: Config, name: str, iterations: int, weights: str, changed: Changed, example: PromptEntry
) -> str:
    """Markdown with a call that draws ``example``, see `Family.usage`.

    Args:
        name: of the export's folder.
        iterations: finished when the weights were saved.
        weights: ``ema`` or ``student``.
        changed: how many of them training has changed.
    """
    drawing = Drawing(name, example.prompt, example.bucket.height, example.bucket.width)
    return _CARD.format(
        title=" ".join(name.split()),
        teacher=_span(teacher_name(config.teacher.path)),
        trained=method_of(config).TRAINED,
        start=_start(config),
        iterations=iterations,
        weights=weights,
        changed=changed,
        steps=len(config.method.times()),
        usage=family_of(config.teacher.path).usage(config.teacher, config.method, drawing),
    )


def _start(config: Config) -> str:
    """What a smaller student was made of."""
    start = Start.of(config)
    return f" from {start.kept} of {_span(teacher_name(start.folder))}" if start.kept else ""


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
