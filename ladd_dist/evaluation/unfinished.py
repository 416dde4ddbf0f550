"""What an evaluation has drawn of its student: one that was killed goes on from there.

    RUN_DIR/.evaluation.drawn-SOURCE/   as in `evaluation.on_disk`

SOURCE is a digest of all that the pictures depend on. The folder belongs to one job at a time, and goes when the
evaluation is finished; what evaluations of other sources have left goes too, once none of their jobs may be alive.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ladd_dist.distributed.world import World
from ladd_dist.evaluation.on_disk import SetsOnDisk
from ladd_dist.evaluation.places import drawn_folder, drawn_folders
from ladd_dist.files.lock_file import Watch, lock_files
from ladd_dist.files.run_lock import RunLock
from ladd_dist.supervision.requests import SharedStop


@contextmanager
def unfinished(run_dir: Path, source: str, world: World, lock: RunLock, stop: SharedStop) -> Iterator[SetsOnDisk]:
    """Hold what an evaluation has drawn; it is removed when all ranks have left the block well.

    Args:
        source: see `drawn_folder`.
        lock: to hold it with.

    Raises:
        LaddError: if another job draws the same evaluation, or it cannot be written.
    """
    folder, watch = drawn_folder(run_dir, source), Watch()
    if world.is_main:
        _clear([other for other in drawn_folders(run_dir) if other != folder], watch)
    lock.acquire(folder, "evaluation", world)
    try:
        yield SetsOnDisk(folder, world, stop, lock.check)
        world.barrier()
        if world.is_main:
            _empty(folder)
    finally:
        lock.release()
    if world.is_main:
        with suppress(OSError):  # the next job has come
            folder.rmdir()
        _clear(drawn_folders(run_dir), watch)


def _empty(folder: Path) -> None:
    """The lock stays until it is released."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in lock_files(folder):
            path.unlink()


def _clear(others: Sequence[Path], watch: Watch) -> None:
    """Remove those whose jobs have ended; of one on another machine only a later look can tell."""
    for other in others:
        if not watch.living(lock_files(other), time.monotonic()):
            shutil.rmtree(other, ignore_errors=True)
