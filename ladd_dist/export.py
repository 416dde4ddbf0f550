"""A trained student as a diffusers folder that `StableDiffusion3Pipeline.from_pretrained` loads."""

import shutil
from pathlib import Path

import torch

from ladd_dist.checkpoint import Checkpoint
from ladd_dist.config import Config
from ladd_dist.data.prompts import Request
from ladd_dist.errors import LaddError
from ladd_dist.models.folder import T5_PARTS, components, copy_pipeline
from ladd_dist.networks import check_networks
from ladd_dist.student import Weights, load_student
from ladd_dist.student_schedule import sampler_notes, write_scheduler

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}

A few-step student of `{teacher}`, distilled by Latent Adversarial Diffusion Distillation with ladd_dist,
{iterations} iterations ({weights} weights). No guidance; the times of the steps are given as `sigmas`:

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{name}"{without})
torch.manual_seed(0)  # noise between steps comes from torch's global generator
image = pipe("{prompt}", sigmas={sigmas}, guidance_scale=1.0, height={height}, width={width}).images[0]
```

{sampler}"""


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

    The scheduler becomes the student's sampler, whatever the teacher's was.

    Args:
        weights: ``ema`` or ``student``.
        dtype: of the saved weights.
        example: what the model card draws.
        overwrite: replace ``folder``.

    Raises:
        LaddError: if ``folder`` exists, or the configured networks cannot be used.
    """
    if folder.exists() and not overwrite:
        raise LaddError(f"export folder {folder} exists: pass --overwrite, or choose another with --out")
    check_networks(config)
    teacher = Path(config.teacher.path)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    copy_pipeline(teacher, temporary, without="transformer")

    write_scheduler(temporary)
    net = load_student(config, checkpoint, weights, dtype).net
    net.save_pretrained(temporary / "transformer", safe_serialization=True)

    card = _CARD.format(
        name=folder.name, teacher=teacher.name, iterations=checkpoint.state.iteration, weights=weights,
        without="".join(f", {part}=None" for part in T5_PARTS if part not in components(teacher)),
        prompt=example.prompt, height=example.bucket.height, width=example.bucket.width,
        sigmas=config.method.times(), sampler=sampler_notes(config.method),
    )  # fmt: skip
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder
