"""Datasets of given pictures: a table's, alone or in preference pairs, encoded by the teacher's autoencoder."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace, nearest
from ladd_dist.data.mds import Manifest, Provenance, row
from ladd_dist.data.picture_table import PictureTable, Row, read_pairs, read_pictures
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import fit_picture, open_picture
from ladd_dist.drawing.pipeline import Pipeline, tell_cut
from ladd_dist.drawing.plan import Plan, columns_of, plan_parts
from ladd_dist.drawing.writing import write_dataset
from ladd_dist.errors import LaddError
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress, warn
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.signals import Signals


@dataclass(frozen=True)
class _Given:
    """A row and the bucket that its pictures go to."""

    row: Row
    bucket: Bucket


class _Seen(NamedTuple):
    """What a look at a row's pictures tells.

    Attributes:
        size: height and width of the first, in a pair the chosen one.
        least: the smallest height and the smallest width.
        digest: of all their files.
        problem: what is wrong with them, or nothing.
    """

    number: int
    size: tuple[int, int] = (0, 0)
    least: tuple[int, int] = (0, 0)
    digest: str = ""
    problem: str = ""


class _Encoder:
    """Makes a sample of every row."""

    def __init__(self, config: Config, world: World) -> None:
        self._config, self._pipeline, self.batch = config, Pipeline(config, world.device), config.synthesis.batch

    def columns(self, entry: _Given) -> dict[str, str]:
        encoded = self._pipeline.encode([entry.row.prompt], [], entry.bucket)
        return columns_of(encoded, pairs=len(entry.row.pictures) > 1)

    def samples(self, entries: Sequence[_Given]) -> list[dict[str, Any]]:
        cond = self._pipeline.encode([entry.row.prompt for entry in entries], [], entries[0].bucket).cond
        first, *others = (self._latents(entries, column) for column in entries[0].row.pictures)
        return [
            row(entry.row.number, entry.row.prompt, entry.bucket.name, *tensors)
            for entry, *tensors in zip(entries, first, *cond, *others, strict=True)
        ]

    def empty(self) -> Conditioning:
        return self._pipeline.encode_empty()

    def _latents(self, entries: Sequence[_Given], column: str) -> torch.Tensor:
        opened = [(open_picture(entry.row.pictures[column]), entry.bucket) for entry in entries]
        latents = self._pipeline.encode_pictures(torch.stack([fit_picture(*each) for each in opened]))
        if not latents.isfinite().all():
            raise LaddError(f"the autoencoder of teacher {self._config.teacher.path} made non-finite latents")
        return latents


def table_pictures(
    config: Config, table: Path, world: World, lock: RunLock | None = None, signals: Signals | None = None
) -> Manifest:
    """Encode a table's single pictures: training latents that the teacher did not draw.

    Args:
        lock: as of `synthesize`, and ``signals``.

    Raises:
        LaddError, Requeue: as of `table_pairs`.
    """
    return _encode(config, table, read_pictures, world, lock, signals)


def table_pairs(
    config: Config, table: Path, world: World, lock: RunLock | None = None, signals: Signals | None = None
) -> Manifest:
    """Encode the pairs of a table.

    Both pictures of a pair go to the bucket among ``synthesis.buckets`` whose aspect ratio is nearest to the chosen
    one's. Every picture is read once before anything is loaded.

    Args:
        lock: as of `synthesize`, and ``signals``.

    Raises:
        LaddError: for input that cannot be used, naming rows, or as of `write_dataset`.
        Requeue: on all ranks, if a signal asked one of them to stop; finished parts are there.
    """
    return _encode(config, table, read_pairs, world, lock, signals)


def _encode(
    config: Config,
    path: Path,
    read: Callable[[Path], PictureTable],
    world: World,
    lock: RunLock | None,
    signals: Signals | None,
) -> Manifest:
    space, table = check_networks(config), world.together(lambda: read(path))
    seen = _look(table, world)
    table.refuse({each.number: each.problem for each in seen if each.problem})
    buckets = [Bucket.parse(name) for name in config.synthesis.buckets]
    entries = [_Given(each, nearest(*look.size, buckets)) for each, look in zip(table.rows, seen, strict=True)]
    _tell(table, entries, seen)
    tell_cut(config, (entry.row.prompt for entry in entries), world)
    parts = plan_parts(Path(config.data.path), entries, config.synthesis.part_samples)
    plan = Plan(parts, _provenance(config, space, table, seen), space, f"{table.unit}s", table.unit)
    return write_dataset(plan, _Encoder(config, world), config, world, lock or RunLock(), signals or Signals())


def _look(table: PictureTable, world: World) -> list[_Seen]:
    """Read every picture once, a share of the rows on each rank."""
    mine = table.rows[world.rank :: world.size]
    bar = progress("look at pictures", len(mine), unit=table.unit, world=world)
    seen = []
    with ThreadPoolExecutor() as pool:
        for each in pool.map(_look_at, mine):
            seen.append(each)
            bar.update()
    bar.close()
    return sorted(each for share in world.gather(seen) for each in share)


def _look_at(row: Row) -> _Seen:
    digest, sizes = hashlib.sha256(), []
    for column, source in row.pictures.items():
        try:
            picture = open_picture(source)
        except LaddError as error:
            return _Seen(row.number, problem=f"{column}: {error}")
        digest.update(hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).digest())
        sizes.append((picture.height, picture.width))
    least = tuple(map(min, zip(*sizes, strict=True)))
    return _Seen(row.number, sizes[0], (least[0], least[1]), digest.hexdigest())


def _tell(table: PictureTable, entries: Sequence[_Given], seen: Sequence[_Seen]) -> None:
    counts = Counter(entry.bucket.name for entry in entries)
    buckets = ", ".join(f"{count} to {bucket}" for bucket, count in sorted(counts.items()))
    ties = f"; {table.ties} ties left out" if table.ties else ""
    log(f"{table.file}: {len(entries)} {table.unit}s, {buckets}{ties}")
    small = [
        e for e, s in zip(entries, seen, strict=True) if s.least[0] < e.bucket.height or s.least[1] < e.bucket.width
    ]
    if small:
        warn(f"{len(small)} of the {table.unit}s have a picture smaller than its bucket, which is enlarged")


def _provenance(config: Config, space: LatentSpace, table: PictureTable, seen: Sequence[_Seen]) -> Provenance:
    digest = hashlib.sha256(table.file.read_bytes() + "".join(each.digest for each in seen).encode())
    return Provenance(
        teacher=fingerprint(config.teacher.path),
        precision=config.train.precision,
        prompts=digest.hexdigest()[:16],
        seed=0,
        guidance=0.0,
        steps=0,
        scheduler={},
        buckets=config.synthesis.buckets,
        images_per_prompt=1,
        part_samples=config.synthesis.part_samples,
        latent_channels=space.channels,
        max_t5_tokens=config.teacher.max_t5_tokens,
        pairs=f"table:{table.file.name}" if table.unit == "pair" else None,
    )
