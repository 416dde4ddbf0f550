"""The README.md of an exported student: what it is, and a call that draws with it."""

import os
import re
from pathlib import Path

from ladd_dist.checkpoints.sampler import sampler_notes
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.files.disk import real_path
from ladd_dist.methods.registry import method_of
from ladd_dist.models.folder import absent_parts
from ladd_dist.models.registry import family_of

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
# {title}

A few-step student of {teacher}, {trained} with ladd_dist,
{iterations} iterations ({weights} weights). No guidance; the times of the steps are given as `sigmas`:

```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained({name}{without})
torch.manual_seed(0)  # noise between steps comes from torch's global generator
image = pipe(
    {prompt},
    sigmas={sigmas}, guidance_scale=1.0, height={height}, width={width},{arguments}
).images[0]
```

{sampler}"""


def model_card(config: Config, name: str, iterations: int, weights: str, example: PromptEntry) -> str:
    """Markdown with code that draws ``example``, valid for any name and prompt, at the student's number of T5 tokens.

    Args:
        name: of the export's folder.
        example: what the code draws.
    """
    family = family_of(config.teacher.path)
    arguments = family.card_arguments(config.teacher)
    return _CARD.format(
        pipeline=family.pipeline, arguments="".join(f" {key}={value!r}," for key, value in arguments.items()),
        title=" ".join(name.split()), teacher=_span(teacher_name(config.teacher.path)), iterations=iterations,
        weights=weights, trained=method_of(config).TRAINED, name=_literal(name), prompt=_literal(example.prompt),
        height=example.bucket.height, width=example.bucket.width, sigmas=config.method.times(),
        without="".join(f", {part}=None" for part in absent_parts(config.teacher.path)),
        sampler=sampler_notes(config.method),
    )  # fmt: skip


def teacher_name(path: str) -> str:
    """What a teacher's folder is called: its name, or ``org/name`` for a snapshot in the hub's cache."""
    folder = Path(os.path.abspath(os.path.expanduser(path)))  # a link's own name says more than its target's
    for found in (folder, real_path(path)):
        if found.parent.name == "snapshots" and found.parent.parent.name.startswith("models--"):
            return "/".join(found.parent.parent.name.split("--")[1:])
    return folder.name or str(folder)


def _literal(text: str) -> str:
    """Python's literal of a text, on one line and without a backtick, which could end the block of code."""
    return repr(text).replace("`", r"\x60")


def _span(text: str) -> str:
    """A text as code in Markdown's running text."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * text.startswith("`") or " " * text.endswith("`")
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"
