"""Which pictures are asked for: prompts of one's own or held-out ones, their sizes and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.config.values import MAX_SEED
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.prompts import PromptEntry, first_of_each_bucket, read_prompts
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.errors import LaddError

_PER_BUCKET = 8


@dataclass(frozen=True)
class Request:
    """A picture to draw."""

    prompt: str
    seed: int
    size: Bucket


def held_out(config: Config, seed: int) -> list[Request]:
    """Some held-out prompts of every aspect ratio, by size.

    Raises:
        LaddError: if ``evaluation.prompts`` cannot be used.
    """
    entries = read_prompts(config.evaluation.prompts, config.synthesis.buckets)
    chosen = chain.from_iterable(first_of_each_bucket(entries, _PER_BUCKET))
    return [Request(entry.prompt, image_seed(seed, "sample", entry.id), entry.bucket) for entry in chosen]


def given(entries: Sequence[PromptEntry], seed: int, count: int) -> list[Request]:
    """``count`` pictures of every prompt, by size; seeds count on from the first picture's in the prompts' order.

    Raises:
        LaddError: if there are not so many seeds.
    """
    pictures = [entry for entry in entries for _ in range(count)]
    if seed + len(pictures) - 1 > MAX_SEED:
        raise LaddError(f"--seed {seed} leaves no seeds for {len(pictures)} pictures: {MAX_SEED} is the last one")
    requests = [Request(entry.prompt, seed + number, entry.bucket) for number, entry in enumerate(pictures)]
    return [r for size in dict.fromkeys(r.size for r in requests) for r in requests if r.size == size]


def sized(prompts: Sequence[str], sizes: Sequence[Bucket]) -> list[PromptEntry]:
    """Prompts in the given sizes: one for each, or one for all.

    Raises:
        LaddError: if there are more or fewer.
    """
    if len(sizes) not in (1, len(prompts)):
        raise LaddError(f"{len(sizes)} --size for {len(prompts)} prompts: give one for each in order, or one for all")
    each = sizes if len(sizes) == len(prompts) else [sizes[0]] * len(prompts)
    return [PromptEntry(i, prompt, size) for i, (prompt, size) in enumerate(zip(prompts, each, strict=True))]


def check_sizes(requests: Sequence[Request], space: LatentSpace, image: Path | None) -> None:
    """Check that the networks can draw what is asked for.

    Args:
        image: the file whose size it is, for the error.

    Raises:
        LaddError: naming the first size that does not divide, or is too large.
    """
    for size in dict.fromkeys(request.size for request in requests):
        try:
            space.shape(size)
        except LaddError as error:
            raise LaddError(f"--image {image}: {error}: resize it" if image else str(error)) from None


def times_from(config: Config, start: float | None) -> list[float]:
    """The student's times of the configured steps from one of them on, or all.

    Raises:
        LaddError: if it is none of them.
    """
    times = config.method.times(config.sampling.steps)
    if start is None:
        return times
    if start not in times:
        known = ", ".join(f"{time:g}" for time in times)
        raise LaddError(f"--from-time {start:g} is none of the {len(times)} times of the steps: give one of {known}")
    return times[times.index(start) :]
