"""What a step was measured to take (rows of `launchers/step.py`), beside what is predicted of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Size

from ladd_dist.config import Config, load
from ladd_dist.data.buckets import Bucket
from ladd_dist.errors import LaddError
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.cards import Card
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.plan import flops_by_part, largest_bucket

UPDATES = ("optimizer", "average")
"""Phases that an iteration has once, whatever its number of samples."""

Shapes = dict[str, list[tuple[str, Size, bool]]]
"""Of every network its parameters: name, shape, whether trained."""


@dataclass(frozen=True)
class MeasuredStep:
    """One setting on one GPU.

    Attributes:
        config: file of the configuration.
        overrides: of it.
        setting: in words.
        device: as PyTorch calls it.
        samples: of an iteration.
        phases: seconds of one.
        peak: most bytes that tensors took.
        as_then: overrides by which today's code takes the memory that the code of that day took.
    """

    config: str
    overrides: Sequence[str]
    setting: str
    device: str
    samples: int
    phases: Mapping[str, float]
    peak: int
    as_then: Sequence[str] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "MeasuredStep":
        """A row that has no error."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})

    @property
    def passes(self) -> float:
        """Seconds of a sample, without the update."""
        return sum(spent for name, spent in self.phases.items() if name not in UPDATES) / self.samples

    @property
    def update(self) -> float:
        """Seconds that an iteration takes beside its samples' passes."""
        return sum(self.phases.get(name, 0.0) for name in UPDATES)

    @cached_property
    def loaded(self) -> Config:
        """The configuration that was measured."""
        return load(self.config, [*self.overrides, *self.as_then])


@dataclass(frozen=True)
class MeasuredRun:
    """An iteration of ``batch`` samples on one GPU, by a measured step.

    Attributes:
        flops: of a sample in the order of passes that was measured, without what is recomputed.
    """

    step: MeasuredStep
    card: Card
    batch: int
    flops: float

    @property
    def seconds(self) -> float:
        """Of the iteration."""
        return self.step.passes * self.batch + self.step.update

    @property
    def samples_per_second(self) -> float:
        """Of the GPU."""
        return self.batch / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the card's bf16 peak that goes into the model's own arithmetic."""
        return self.flops * self.samples_per_second / self.card.bf16


def read_steps(path: Path) -> list[MeasuredStep]:
    """All of a file that were measured.

    Raises:
        LaddError: if it is not one of `launchers/step.py`.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [MeasuredStep.of(row) for row in rows if "error" not in row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaddError(
            f"{path} has no rows of launchers/step.py ({error}): take docs/benchmarks/step.json"
        ) from None


def fastest(steps: Sequence[MeasuredStep], config: Config, card: Card, costs: Costs) -> MeasuredRun | None:
    """Of those on such a card with the same networks and pictures, at the configuration's global batch."""
    wanted = _made_of(config)
    alike = [
        MeasuredRun(step, card, config.train.global_batch, sum(flops_by_part(step.loaded, costs).values()))
        for step in steps
        if step.device == card.device and _made_of(step.loaded) == wanted
    ]
    return min(alike, key=lambda run: run.seconds, default=None)


def _made_of(config: Config) -> tuple[Bucket, Shapes]:
    networks = method_of(config).networks(config)
    shapes = {
        name: [(key, value.shape, value.requires_grad) for key, value in net.named_parameters()]
        for name, net in {**networks.trained, **networks.frozen}.items()
    }
    return largest_bucket(config), shapes
