"""Sets of pictures, drawn and looked at by all ranks in lockstep."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Encoded, Pipeline
from ladd_dist.evaluation.drawn import Collected, Drawn
from ladd_dist.evaluation.instruments import BROKEN, Instruments
from ladd_dist.evaluation.judges import TEACHER
from ladd_dist.evaluation.teacher_features import TeacherFeatures

DRAWN, OTHER_HALF = "evaluation", "evaluation, other half"
"""What noise is for: all sets begin with the same, but for the guided teacher's second."""

_LARGEST = 1e4
"""Latents are of order 1; what looks at larger ones may overflow."""
_HOST = torch.device("cpu")

Encode = Callable[[list[PromptEntry], str], Encoded]
"""Prompts of one bucket, with noise for a purpose: `Pipeline.encode_entries`, or `EncodedOnce`."""
LatentsOf = Callable[[Encoded], Tensor]
"""Draws latents ``(B, C, H, W)``."""
T = TypeVar("T")


def pictures(config: Config, count: int) -> list[PromptEntry]:
    """So many: the prompts in turn, each repetition with noise of its own.

    Raises:
        LaddError: if the prompts cannot be used.
    """
    once, each = (
        read_prompts(config.evaluation.prompts, config.synthesis.buckets),
        config.evaluation.images_per_prompt,
    )
    chosen = [once[i // each % len(once)] for i in range(count)]
    return [PromptEntry(i, entry.prompt, entry.bucket) for i, entry in enumerate(chosen)]


def by_bucket(entries: list[PromptEntry]) -> dict[str, list[PromptEntry]]:
    """Buckets in order of first appearance."""
    found: dict[str, list[PromptEntry]] = {}
    for entry in entries:
        found.setdefault(entry.bucket.name, []).append(entry)
    return found


def in_batches(entries: list[PromptEntry], size: int) -> list[list[PromptEntry]]:
    """Of one bucket each, whatever the number of ranks."""
    return [rows[i : i + size] for rows in by_bucket(entries).values() for i in range(0, len(rows), size)]


def shares(batches: Sequence[T], world: World) -> Iterator[tuple[T, bool]]:
    """This rank's, and whether they count.

    Every rank has as many, since a sharded network needs all of them for each pass: where none is left for it, a rank
    repeats another's, which does not count.
    """
    for first in range(0, len(batches), world.size):
        mine = first + world.rank
        yield batches[mine % len(batches)], mine < len(batches)


class SoFar:
    """What is there of a set before it is drawn, and what becomes of its batches: nothing, and nothing."""

    def load(self, count: int) -> tuple[Collected, float, list[int]]:
        """This rank's share of what is there of so many batches, its seconds, and the batches that are missing."""
        return Collected(), 0.0, list(range(count))

    def save(self, number: int, rows: list[PromptEntry], images: Tensor, found: Collected, seconds: float) -> None:
        """Keep a batch's pictures ``(B, 3, H, W)``, what was found in them, and the seconds that they took."""

    def stopping(self) -> bool:
        """Whether to draw no further batch; True on one rank only if no other needs it for its passes."""
        return False

    def agree(self) -> None:
        """Called by all ranks at a set's end, before they exchange what they have."""


class Draw:
    """Draws and looks at one set after the other.

    Args:
        teacher: None looks at no latents.
        advance: called with the pictures that all ranks have drawn since the last call.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        pipeline: Pipeline,
        instruments: Instruments,
        teacher: TeacherFeatures | None,
        encode: Encode,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._size, self._world, self._pipeline = config.evaluation.batch, world, pipeline
        self._instruments, self._teacher, self._encode, self._advance = instruments, teacher, encode, advance

    def __call__(
        self,
        latents_of: LatentsOf,
        entries: list[PromptEntry],
        purpose: str,
        so_far: SoFar | None = None,
    ) -> Drawn:
        """A set, every rank's pictures.

        Args:
            purpose: `DRAWN` or `OTHER_HALF`.
            so_far: has batches that need not be drawn again.
        """
        batches, so_far = in_batches(entries, self._size), so_far or SoFar()
        found, seconds, missing = so_far.load(len(batches))
        for number, counts in shares(missing, self._world):
            if so_far.stopping():
                break
            rows = batches[number]
            of_batch, took, images = self._batch(latents_of, rows, purpose)
            if counts:
                so_far.save(number, rows, images, of_batch, took)
                found.take(of_batch.rows())
                seconds += took
            self._advance(len(rows) * self._world.size)
        so_far.agree()
        return Drawn(found.over(self._world), sum(self._world.gather(seconds)) / len(entries))

    def _batch(self, latents_of: LatentsOf, rows: list[PromptEntry], purpose: str) -> tuple[Collected, float, Tensor]:
        """What is found in pictures of one bucket, the seconds to draw them, and themselves."""
        found, numbers, start = Collected(), [row.id for row in rows], time.monotonic()
        encoded = self._encode(rows, purpose)
        latents, broken = _mended(latents_of(encoded))
        images = self._pipeline.decode(latents)
        seconds = time.monotonic() - start
        found.add(BROKEN, numbers, broken)
        self._instruments.look(found, rows, images)
        if self._teacher is not None:
            found.add(TEACHER, numbers, self._teacher(latents, encoded, numbers))
        return found, seconds, images


def _mended(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents with zeros for those that are no pictures, as of a network that has diverged; 1 for these, else 0."""
    broken = ~(latents.flatten(1).abs() <= _LARGEST).all(1)  # not a number is no less than anything
    return latents.masked_fill(broken[:, None, None, None], 0), broken.double().cpu()


class EncodedOnce:
    """This rank's prompts, encoded once and held in host memory: the text encoders can go.

    Serves sets that are drawn whole: of one with batches that are there already, others fall to this rank.

    Args:
        entries: all that will be drawn.
    """

    def __init__(self, config: Config, world: World, pipeline: Pipeline, entries: list[PromptEntry]) -> None:
        self._seed, self._device, self._held = config.seed, world.device, dict[int, Encoded]()
        for rows, _ in shares(in_batches(entries, config.evaluation.batch), world):
            encoded = pipeline.encode_entries(rows, DRAWN)
            self._held[rows[0].id] = replace(encoded, cond=encoded.cond.to(_HOST))

    def __call__(self, rows: list[PromptEntry], purpose: str) -> Encoded:
        """As `Pipeline.encode_entries`."""
        held = self._held[rows[0].id]
        seeds = [image_seed(self._seed, purpose, row.id) for row in rows]
        return Encoded(held.cond.to(self._device), seeds, held.shape)
