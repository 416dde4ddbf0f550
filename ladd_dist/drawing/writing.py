"""How a dataset is written, whatever its samples are: sharded over ranks and resumable.

The list of entries is cut into parts. Those that are not there yet are dealt out to the ranks in turn; each is
written to a hidden folder and renamed into place: whatever is killed, a part is whole or absent, and no entry is lost
or done twice, also when the next start has another number of ranks.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from streaming import MDSWriter
from streaming.base.util import merge_index

from ladd_dist.config import Config
from ladd_dist.data.check import verify
from ladd_dist.data.damage import AGAIN, redraw
from ladd_dist.data.index import Index
from ladd_dist.data.mds import INDEX, Manifest, write_empty
from ladd_dist.diffusion.noise import IMAGE_DEVICE
from ladd_dist.distributed.world import World
from ladd_dist.drawing.plan import E, Maker, Part, Plan, check_plan
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals
from ladd_dist.versions import version_of

_SHARD_BYTES = 1 << 26


class _Stopped(Exception):
    """A signal asks to stop in the middle of a part."""


def write_dataset(
    plan: Plan[E], maker: Maker[E], config: Config, world: World, lock: RunLock, signals: Signals
) -> Manifest:
    """Make every sample that is not there yet, then write the streams' indices and the manifest.

    Args:
        lock: the caller's on ``data.path``, checked before anything is written there.
        signals: tell whether all ranks are to stop after their batch.

    Raises:
        LaddError: if the folder holds another plan's samples, a finished part is damaged, another job has taken the
            folder over, or there is nothing but ties.
        Requeue: on all ranks, if a signal asked one of them to stop; finished parts are there.
    """
    root = Path(config.data.path)
    plan = replace(plan, provenance=check_plan(root, plan.provenance, config.teacher.path, world))
    finished, missing = _deal(plan.parts, world)
    world.together(lambda: _verify(finished, plan))
    done = sum(len(part.entries) for part in finished)
    total = done + sum(len(part.entries) for part in missing)
    bar = progress(plan.name, total, done=done, unit=plan.unit, world=world)

    stop = SharedStop(world, signals)

    def advance(count: int) -> None:
        lock.check()
        bar.update(count)
        if stop.asked():
            raise _Stopped

    with suppress(_Stopped):
        for part in missing:
            _write_part(part, maker, plan.provenance.teacher, advance)
    bar.close()
    if stop.agreed(lock.check):
        raise Requeue("stopped by a signal: start the same command again, finished parts are kept")

    world.barrier()
    world.together(lambda: _finish(root, plan, maker, world, lock) if world.is_main else None)
    return Manifest.read(root)


def _deal(parts: list[Part[E]], world: World) -> tuple[list[Part[E]], list[Part[E]]]:
    """This rank's share of the parts that are there, and of those that are not.

    As rank 0 sees them: ranks that looked for themselves could see what others have written meanwhile.
    """
    seen = [part.folder.exists() for part in parts] if world.is_main else []
    there = world.gather(seen)[0]
    finished = [part for part, found in zip(parts, there, strict=True) if found]
    missing = [part for part, found in zip(parts, there, strict=True) if not found]
    return finished[world.rank :: world.size], missing[world.rank :: world.size]


def _verify(parts: list[Part[E]], plan: Plan[E]) -> None:
    """A part that is there counts as finished only if it is what was written."""
    begin = time.monotonic()
    for part in parts:
        index = _index(part.folder, part.entries, plan, redraw(part.folder))
        verify((part.folder, shard) for shard in index.shards)
    if parts:
        log(f"verified {len(parts)} finished parts in {time.monotonic() - begin:.1f} s")


def _index(folder: Path, entries: list[E], plan: Plan[E], remedy: str) -> Index:
    latent, pairs = plan.space.shape(entries[0].bucket), plan.provenance.pairs is not None
    return Index.read(folder, len(entries), latent, pairs, remedy, fewer=plan.ties)


def _write_part(part: Part[E], maker: Maker[E], teacher: str, advance: Callable[[int], object]) -> None:
    temporary = part.folder.with_name(f".{part.folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    schema = maker.columns(part.entries[0])
    with MDSWriter(out=str(temporary), columns=schema, hashes=["xxh64"], size_limit=_SHARD_BYTES) as writer:
        for start in range(0, len(part.entries), maker.batch):
            entries = part.entries[start : start + maker.batch]
            for sample in maker.samples(entries):
                writer.write(sample | {"teacher": teacher})
            advance(len(entries))
    temporary.rename(part.folder)


def _finish(root: Path, plan: Plan[E], maker: Maker[E], world: World, lock: RunLock) -> None:
    lock.check()
    counts: dict[str, int] = {}
    for bucket in dict.fromkeys(part.folder.parent.name for part in plan.parts):
        parts = [part for part in plan.parts if part.folder.parent.name == bucket]
        (root / bucket / INDEX).unlink(missing_ok=True)  # merge_index refuses to replace it
        merge_index([str(part.folder / INDEX) for part in parts], str(root / bucket))
        entries = [entry for part in parts for entry in part.entries]
        counts[bucket] = _index(root / bucket, entries, plan, AGAIN).samples
        if not counts[bucket]:
            (root / bucket / INDEX).unlink()
    ties = sum(len(part.entries) for part in plan.parts) - sum(counts.values())
    if not any(counts.values()):
        raise LaddError(
            f"all {ties} {plan.unit}s are ties, of which no dataset is made: choose others or another scorer"
        )
    packages = ("torch", "diffusers", "transformers", "mosaicml-streaming")
    there = {bucket: count for bucket, count in counts.items() if count}
    versions = {name: version_of(name) for name in packages}
    write_empty(root, maker.empty())
    Manifest(plan.provenance, there, versions, IMAGE_DEVICE.type).write(root)
    log(f"dataset: {sum(counts.values())} samples in {root}" + (f", {ties} ties left out" if ties else ""))
