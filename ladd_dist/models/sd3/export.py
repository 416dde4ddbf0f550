"""The student's sampler as diffusers runs it: the exported folder's scheduler, and how the pipeline is to be called.

The folder decides the times of the steps and the fresh noise between them, by a scheduler of its own that diffusers
loads from it. None of diffusers 0.39 would do: `FlowMatchEulerDiscreteScheduler` with ``stochastic_sampling`` and
`FlowMatchLCMScheduler` renoise, but end at one last time for every number of steps; `FlowMapEulerDiscreteScheduler`
has these times, where they are evenly spaced, but follows the flow without fresh noise.

Two things it cannot decide, so that the model card must say them: guidance, which is 7 by default, and the number of
T5 tokens, of which SD3 masks none.
"""

import json
from pathlib import Path
from typing import Any

from ladd_dist.config import MethodSection, TeacherConfig
from ladd_dist.models.family import Drawing
from ladd_dist.models.folder import INDEX, absent_parts, pipeline_index
from ladd_dist.models.sd3.few_step_scheduler import FewStepScheduler

_TOKENS = 256
"""diffusers' default of ``max_sequence_length``."""

_CALL = """\
```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained({loaded})
image = pipe(
    {prompt},
    num_inference_steps={steps}, guidance_scale={guidance}, max_sequence_length={tokens},
    height={height}, width={width}, generator=torch.Generator().manual_seed(0),
).images[0]
```
"""

_AS_TEACHER = """\
It draws as its teacher does, in many steps with guidance, by the teacher's own schedule, which is in this folder. The
steps and the guidance of this call are those at which the run's configuration has the teacher draw.

{always}{call}"""

_USAGE = """\
**Always pass `guidance_scale=1.0`.** The student was never trained with guidance; the pipeline's default is 7, and no
file of this folder can change that. Always pass `num_inference_steps`, too: {counts}. Any other number, such as the
pipeline's own 28, is an error.

{always}{call}
`trust_remote_code=True` lets diffusers run `scheduler/{module}.py`, which steps at the times that the student was
trained at: {times}. Without it loading is refused. To run no code of this folder, load it with `scheduler=None` and
give the pipeline times in every call:

```python
from diffusers import FlowMatchEulerDiscreteScheduler

pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)  # and pipe(..., sigmas={all_times})
```

With `device_map="balanced"` this is the one way: diffusers 0.39 then refuses code of a folder, whatever leave it has.

From image to image, `StableDiffusion3Img2ImgPipeline` is loaded and called in the same way; `strength` says at which
of the times it begins.

One `generator=` makes one picture, also in a batch with a list of them: noise between steps is made from the initial
noise. The trainer's own sampler draws both by a generator of the CPU with a picture's seed, wherever it computes. To
have its pictures, hand such generators to the scheduler as well, before every call:

```python
from functools import partial

generator = torch.Generator().manual_seed(0)
pipe.scheduler.step = partial(pipe.scheduler.step, generator=generator)  # and pipe(..., generator=generator)
```
"""

_ALWAYS = """\
**Always pass `max_sequence_length={tokens}`.** The network was trained with so many T5 tokens, and SD3 masks
none of them: with the pipeline's default, {default}, it draws other pictures. No file of this folder can change that.

"""


def write_scheduler(folder: Path, times: list[float]) -> None:
    """Make a copied diffusers folder's scheduler the student's sampler, see `FewStepScheduler`.

    It is written anew: none of the copied settings survives, nor its class.

    Args:
        times: all that the student was trained at.

    Raises:
        LaddError: if its ``model_index.json`` is damaged.
    """
    components = pipeline_index(folder)
    FewStepScheduler(times).save_pretrained(folder / "scheduler")
    components["scheduler"] = [FewStepScheduler.__module__, FewStepScheduler.__name__]
    (folder / INDEX).write_text(json.dumps(components, indent=2) + "\n", encoding="utf-8")


def arguments(teacher: TeacherConfig) -> dict[str, Any]:
    """The number of T5 tokens, where it is not the pipeline's own."""
    return {} if teacher.max_t5_tokens == _TOKENS else {"max_sequence_length": teacher.max_t5_tokens}


def usage(teacher: TeacherConfig, method: MethodSection, drawing: Drawing) -> str:
    """Code that draws, valid for any name and prompt, at the student's number of T5 tokens; times by steps."""
    trust = [] if method.draws_as_teacher else ["trust_remote_code=True"]
    absent = [f"{part}=None" for part in absent_parts(teacher.path)]
    call = _CALL.format(
        loaded=", ".join([_literal(drawing.folder), *trust, *absent]), prompt=_literal(drawing.prompt),
        steps=drawing.steps, guidance=drawing.guidance, height=drawing.height, width=drawing.width,
        tokens=teacher.max_t5_tokens,
    )  # fmt: skip
    always = _ALWAYS.format(tokens=teacher.max_t5_tokens, default=_TOKENS) if arguments(teacher) else ""
    if method.draws_as_teacher:
        return _AS_TEACHER.format(always=always, call=call)
    counts = method.step_counts
    return _USAGE.format(
        always=always, call=call, counts=" or ".join(map(str, counts)), module=FewStepScheduler.__module__,
        times=", ".join(f"{method.times(n)} in {n} step{'s' * (n > 1)}" for n in counts), all_times=method.times(),
    )  # fmt: skip


def _literal(text: str) -> str:
    """Python's literal of a text, on one line and without a backtick, which could end the block of code."""
    return repr(text).replace("`", r"\x60")
