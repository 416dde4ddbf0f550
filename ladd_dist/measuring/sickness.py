"""Ways to make a run of the digits sick on purpose, to see which the guard tells."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ladd_dist.data.prompts import read_prompts
from ladd_dist.diffusion.batch import Batch
from ladd_dist.digits.prompts import digits_in
from ladd_dist.digits.scans import load_part, render
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.training.trainer import Trainer

_DRIFT = 1.07


def _nothing(trainer: Trainer) -> None:
    pass


@dataclass(frozen=True)
class Sickness:
    """What goes wrong.

    Attributes:
        what: in a few words.
        rates: factors by the section of the optimizer whose learning rate is wrong from the first iteration on.
        late: whether the run is healthy at first.
        begin: called once, before the first sick iteration.
        again: called after each sick iteration.
    """

    what: str
    rates: Mapping[str, float] = field(default_factory=dict)
    late: bool = False
    begin: Callable[[Trainer], None] = _nothing
    again: Callable[[Trainer], None] = _nothing


def _kill_heads(trainer: Trainer) -> None:
    """All heads' weights are zero, which leaves no gradient but that of the last bias, and that rate is zero."""
    heads = trainer.method.trained["heads"]
    for shard in heads.shards().values():
        shard.local.zero_()
    heads.rate_factor = 0.0


def _map_latents(trainer: Trainer, change: Callable[[Batch], Tensor]) -> None:
    batches: Any = trainer._micro_batches
    trainer._micro_batches = ([replace(micro, latents=change(micro)) for micro in batch] for batch in batches)


def _constant_data(trainer: Trainer) -> None:
    """The first latent of each bucket is all that its batches hold."""
    first: dict[str, Tensor] = {}

    def change(batch: Batch) -> Tensor:
        return first.setdefault(batch.bucket, batch.latents[:1]).expand_as(batch.latents).contiguous()

    _map_latents(trainer, change)


def _real_data(trainer: Trainer) -> None:
    """Latents of real scans of the prompts' digits, which the teacher was trained on but has not drawn."""
    settings, scans = trainer.config.synthesis, load_part("teacher")
    pipeline = Pipeline(trainer.config, trainer.world.device)
    entries = {e.id: e for e in read_prompts(settings.prompts, settings.buckets, settings.images_per_prompt)}
    g = torch.Generator().manual_seed(trainer.config.seed)

    def scan(digit: int) -> Tensor:
        found = scans.images[scans.labels == digit]
        return found[int(torch.randint(len(found), (), generator=g))]

    def change(batch: Batch) -> Tensor:
        digits = [digits_in(entries[number].prompt) for number in batch.ids]
        pictures = render(torch.stack([torch.stack([scan(d) for d in cells]) for cells in digits]), batch.bucket)
        return pipeline.encode_pictures(pictures)

    _map_latents(trainer, change)


def _wrong_average(trainer: Trainer) -> None:
    """``ema <- ema - (1 - decay) (weights - ema)``: away from the weights."""
    ema: Any = trainer.ema

    @torch.no_grad()
    def update(updates: int) -> None:
        decay = min(ema._decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(ema._average, ema._weights, decay - 1)

    ema.update = update


def _spoil_head(trainer: Trainer) -> None:
    next(iter(trainer.method.trained["heads"].shards().values())).local[0] = torch.nan


def _raise_rates(trainer: Trainer) -> None:
    for engine in trainer.method.trained.values():
        engine.rate_factor *= _DRIFT


HEALTHY = "healthy"
SICKNESSES: dict[str, Sickness] = {
    HEALTHY: Sickness("nothing"),
    "head-rate": Sickness("head learning rate x100", {"head_optimizer": 100}),
    "student-rate": Sickness("student learning rate x100", {"student_optimizer": 100}),
    "dead-heads": Sickness("heads whose weights are zero and frozen", late=True, begin=_kill_heads),
    "constant-data": Sickness("one latent for all samples of a bucket", begin=_constant_data),
    "real-data": Sickness("scans instead of the teacher's own pictures", begin=_real_data),
    "wrong-average": Sickness("the average moves away from the weights", begin=_wrong_average),
    "not-a-number": Sickness("a weight of the heads is NaN", late=True, begin=_spoil_head),
    "slow-drift": Sickness("both learning rates grow by 7% an iteration", late=True, again=_raise_rates),
}


def train(trainer: Trainer, sickness: Sickness, onset: int) -> Iterator[int]:
    """`Trainer.iterations`, sick from ``onset`` finished iterations on, or from the first if it is not a late one."""
    if not sickness.late:
        sickness.begin(trainer)
    for done in trainer.iterations():
        yield done
        if sickness.late and done == onset:
            sickness.begin(trainer)
        if not sickness.late or done >= onset:
            sickness.again(trainer)
