"""The student's sampler as diffusers runs it: the exported folder's scheduler, and how the pipeline is to be called.

Three things are decided by the pipeline's call and by no file of a folder, so that the model card must say them:

- Times. Without ``sigmas=`` the scheduler spaces ``num_inference_steps``, 28 by default, from 1 to 0.001. The last
  trained time as ``shift_terminal`` would mend the call with as many steps as there are times, but stretches two
  steps off theirs and turns a single one into NaN.
- Guidance. ``guidance_scale`` is 7 by default.
- Noise. ``generator=`` makes the initial noise only: ``step`` of whatever scheduler takes one, but is given none.
"""

import json
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler

from ladd_dist.config import MethodSection, TeacherConfig
from ladd_dist.models.family import Drawing
from ladd_dist.models.folder import INDEX, absent_parts, pipeline_index

_USAGE = """\
It draws without guidance; the times of its steps are given as `sigmas`:

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained({name}{without})
torch.manual_seed(0)  # noise between steps comes from torch's global generator
image = pipe(
    {prompt},
    sigmas={sigmas}, guidance_scale=1.0, height={height}, width={width}, max_sequence_length={tokens},
).images[0]
```

{fewer}Pass `sigmas` and `guidance_scale=1.0` always: the pipeline's own defaults are guidance 7 and 28 steps at other
times than the trained ones, and `num_inference_steps` alone spaces others, too.

The pipeline's `generator=` makes the initial noise only. Hand it, or a list of one for each picture, to the scheduler
as well before every call, and the noise between steps comes from it, too: a seed then gives one picture.

```python
from functools import partial

generator = torch.Generator().manual_seed(0)
pipe.scheduler.step = partial(pipe.scheduler.step, generator=generator)  # and pipe(..., generator=generator)
```
"""


def write_scheduler(folder: Path) -> None:
    """Make a copied diffusers folder's scheduler the student's sampler: unshifted times, fresh noise between steps.

    It is written anew: none of the copied settings survives, nor its class.

    Raises:
        LaddError: if its ``model_index.json`` is damaged.
    """
    components = pipeline_index(folder)
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.save_pretrained(folder / "scheduler")
    components["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / INDEX).write_text(json.dumps(components, indent=2) + "\n", encoding="utf-8")


def usage(teacher: TeacherConfig, method: MethodSection, drawing: Drawing) -> str:
    """Code that draws, valid for any name and prompt, at the student's number of T5 tokens; times of fewer steps."""
    fewer = [f"`sigmas={method.times(n)}` for {n} step{'s' * (n > 1)}" for n in method.step_counts[1:]]
    return _USAGE.format(
        name=_literal(drawing.folder), without="".join(f", {part}=None" for part in absent_parts(teacher.path)),
        prompt=_literal(drawing.prompt), sigmas=method.times(), height=drawing.height, width=drawing.width,
        tokens=teacher.max_t5_tokens, fewer=f"Fewer: {', '.join(fewer)}.\n\n" if fewer else "",
    )  # fmt: skip


def _literal(text: str) -> str:
    """Python's literal of a text, on one line and without a backtick, which could end the block of code."""
    return repr(text).replace("`", r"\x60")
