"""Checks of a dataset before anything is loaded: does it fit the run, and is every shard what was written."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.damage import AGAIN
from ladd_dist.data.index import Index, ShardRecord
from ladd_dist.data.mds import MANIFEST, REJECTED, Manifest, Provenance, columns
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.log import log, warn
from ladd_dist.methods.registry import method_of
from ladd_dist.models.fingerprint import is_of

Shard = tuple[Path, ShardRecord]
"""A shard and the folder that its files' names are relative to."""


def check_dataset(config: Config, space: LatentSpace, teacher: str, world: World) -> Manifest:
    """Check that a dataset fits the run, and that its files have their recorded sizes and hashes.

    Args:
        teacher: fingerprint of the run's teacher.

    Raises:
        LaddError: on all ranks alike, if the dataset is missing or damaged, was made by another teacher, has latents
            of other channels, has no pairs for a method that needs them, or has a bucket too small for one global
            batch.
    """
    root, begin = Path(config.data.path), time.monotonic()
    manifest, shards = world.together(lambda: _open(config, space, teacher))
    what = f"{len(shards)} shards, {sum(shard.raw_data.bytes for _, shard in shards) / 1e9:.2f} GB"
    log(f"verifying the dataset: {what}")
    mine = _share(shards, root / MANIFEST, world)
    world.together(lambda: verify(mine))
    log(f"verified {what} in {time.monotonic() - begin:.1f} s")
    bare = sum(not shard.raw_data.hashes for _, shard in shards)
    if bare and world.is_main:
        warn(f"{bare} shards of data.path={root} have no hashes in their index: only their sizes were verified")
    if world.is_main:
        _tell_origin(config, manifest.provenance)
    return manifest


def verify(shards: Iterable[Shard]) -> None:
    """Check the files of shards against the sizes and hashes in their index.

    Raises:
        LaddError: naming the first file that is missing or damaged, and the remedy.
    """
    for folder, shard in shards:
        for file in shard.files(folder):
            file.verify(folder)


def _open(config: Config, space: LatentSpace, teacher: str) -> tuple[Manifest, list[Shard]]:
    root, shards = Path(config.data.path), []
    manifest = Manifest.read(root)
    _check_manifest(config, manifest, space, teacher)
    for bucket, count in manifest.counts.items():
        latent, pairs = space.shape(Bucket.parse(bucket)), manifest.provenance.pairs is not None
        index = Index.read(root / bucket, count, latent, pairs, AGAIN)
        shards += [(root / bucket, shard) for shard in index.shards]
    return manifest, shards


def _check_manifest(config: Config, manifest: Manifest, space: LatentSpace, teacher: str) -> None:
    made, where = manifest.provenance, f"data.path={config.data.path}"
    _check_columns(config, made)
    if made.latent_channels != space.channels:
        raise LaddError(
            f"{where} holds latents of {made.latent_channels} channels, but the teacher {config.teacher.path} has "
            f"{space.channels}: synthesize with this teacher, or set teacher.path to the one that made them"
        )
    if made.teacher != teacher and not is_of(config.teacher.path, made.teacher):
        raise LaddError(
            f"{where} was made by teacher {made.teacher}, not by {config.teacher.path} ({teacher}): "
            "synthesize again, or set teacher.path to the one that made it, with the files it had then"
        )
    if made.max_t5_tokens != config.teacher.max_t5_tokens:
        raise LaddError(
            f"{where} was drawn with teacher.max_t5_tokens={made.max_t5_tokens}, but this configuration has "
            f"{config.teacher.max_t5_tokens}: set it to {made.max_t5_tokens}, or synthesize again"
        )
    for bucket, count in manifest.counts.items():
        space.shape(Bucket.parse(bucket))
        if count < config.train.global_batch:
            raise LaddError(
                f"bucket {bucket} of {where} holds {count} samples, fewer than train.global_batch="
                f"{config.train.global_batch}: synthesize more for it, or lower train.global_batch"
            )


def _check_columns(config: Config, made: Provenance) -> None:
    asks = f"method.name={config.method.name}"
    lacking = set(method_of(config).FIELDS) - set(columns((), (), (), made.pairs is not None))
    if REJECTED in lacking:
        raise LaddError(
            f"{asks} needs preference pairs, but data.path={config.data.path} holds latents without a rejected one: "
            "make pairs with launchers/pairs.py, and set data.path to them"
        )
    if lacking:
        raise LaddError(f"{asks} needs the column {min(lacking)}, which latents have not")


def _tell_origin(config: Config, made: Provenance) -> None:
    """Objectives may be trained on other data than they are made for, but whoever does should know what they see."""
    where, asks = f"data.path={config.data.path}", f"method.name={config.method.name}"
    if made.pairs and REJECTED not in method_of(config).FIELDS:
        given = ", which the teacher did not draw" if made.pairs.startswith("table:") else ""
        warn(f"{where} holds preference pairs ({made.pairs}): {asks} trains on the chosen pictures alone{given}")
    elif not made.pairs and not made.steps:
        warn(f"{where} holds latents of given pictures: {asks} trains on them, though the teacher did not draw them")


def _share(shards: Sequence[Shard], file: Path, world: World) -> Iterator[Shard]:
    """The shards that this rank checks: all ranks that see the same copy of the dataset divide it between them.

    A shared file system shows every node one inode and one time of its last change, which nobody can set; copies on
    nodes' own disks differ in them, and each is read whole.

    Args:
        file: any of the dataset's.
    """
    status = file.stat()
    copies = world.gather((status.st_ino, status.st_ctime_ns))
    ranks = [rank for rank, copy in enumerate(copies) if copy == copies[world.rank]]
    return _every(shards, len(ranks), ranks.index(world.rank), world)


def _every(shards: Sequence[Shard], step: int, first: int, world: World) -> Iterator[Shard]:
    for number, shard in enumerate(shards):
        world.position.enter(0, "verify")  # for others' shards too: places tell who is behind
        if number % step == first:
            yield shard
