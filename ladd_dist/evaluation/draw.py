"""Sets of pictures, drawn and looked at by all ranks in lockstep."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

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
Keep = Callable[[list[PromptEntry], Tensor], None]
"""Takes a batch's pictures."""


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


def shares(entries: list[PromptEntry], size: int, world: World) -> Iterator[tuple[list[PromptEntry], bool]]:
    """This rank's batches, of one bucket each, and whether they count.

    Every rank has as many, since a sharded network needs all of them for each pass: where none is left for it, a rank
    repeats another's, which does not count.
    """
    batches = [rows[i : i + size] for rows in by_bucket(entries).values() for i in range(0, len(rows), size)]
    for first in range(0, len(batches), world.size):
        mine = first + world.rank
        yield batches[mine % len(batches)], mine < len(batches)


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
        latents_of: Callable[[Encoded], Tensor],
        entries: list[PromptEntry],
        purpose: str,
        keep: Keep | None = None,
    ) -> Drawn:
        """A set, every rank's pictures.

        Args:
            latents_of: draws latents ``(B, C, H, W)``.
            purpose: `DRAWN` or `OTHER_HALF`.
        """
        found, seconds = Collected(), 0.0
        for rows, counts in shares(entries, self._size, self._world):
            start = time.monotonic()
            encoded = self._encode(rows, purpose)
            latents, broken = _mended(latents_of(encoded))
            images = self._pipeline.decode(latents)
            seconds += (time.monotonic() - start) * counts
            into, numbers = found if counts else Collected(), [row.id for row in rows]
            into.add(BROKEN, numbers, broken)
            self._instruments.look(into, rows, images)
            if self._teacher is not None:
                into.add(TEACHER, numbers, self._teacher(latents, encoded, numbers))
            if keep and counts:
                keep(rows, images)
            self._advance(len(rows) * self._world.size)
        return Drawn(found.over(self._world), sum(self._world.gather(seconds)) / len(entries))


def _mended(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents with zeros for those that are no pictures, as of a network that has diverged; 1 for these, else 0."""
    broken = ~(latents.flatten(1).abs() <= _LARGEST).all(1)  # not a number is no less than anything
    return latents.masked_fill(broken[:, None, None, None], 0), broken.double().cpu()


class EncodedOnce:
    """This rank's prompts, encoded once and held in host memory: the text encoders can go.

    Args:
        entries: all that will be drawn.
    """

    def __init__(self, config: Config, world: World, pipeline: Pipeline, entries: list[PromptEntry]) -> None:
        self._seed, self._device, self._held = config.seed, world.device, dict[int, Encoded]()
        for rows, _ in shares(entries, config.evaluation.batch, world):
            encoded = pipeline.encode_entries(rows, DRAWN)
            self._held[rows[0].id] = replace(encoded, cond=encoded.cond.to(_HOST))

    def __call__(self, rows: list[PromptEntry], purpose: str) -> Encoded:
        """As `Pipeline.encode_entries`."""
        held = self._held[rows[0].id]
        seeds = [image_seed(self._seed, purpose, row.id) for row in rows]
        return Encoded(held.cond.to(self._device), seeds, held.shape)
