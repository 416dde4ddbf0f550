"""What an evaluation has drawn, on disk batch by batch: one that was killed goes on from there.

    RUN_DIR/.evaluation.drawn-SOURCE/sets/SET/000012.safetensors   numbers of a batch of pictures, and its seconds
                                    /reference.safetensors         the judge's features of a reference set
                                    /pictures/                     those that are shown

Batches are cut from the list of pictures, whatever the number of ranks, and each has noise of its own: another number
of ranks goes on with what is there. SOURCE is a digest of all that the pictures depend on. The folder belongs to one
job at a time, and goes when the evaluation is finished; what evaluations of other sources have left goes too, once
none of their jobs may be alive.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.evaluation.draw import SoFar
from ladd_dist.evaluation.drawn import Collected, Keyed, Rows, load_rows, save_rows
from ladd_dist.evaluation.places import PICTURES, batch_file, batches_there, drawn_folder, drawn_folders
from ladd_dist.files.lock_file import Watch, lock_files
from ladd_dist.files.run_lock import RunLock
from ladd_dist.supervision.requests import SharedStop

_SECONDS = "seconds"

Show = Callable[[list[PromptEntry], Tensor], None]
"""Takes a batch's pictures ``(B, 3, H, W)``."""


class Unfinished:
    """An evaluation's folder of what is drawn.

    Args:
        lock: held on it.
        stop: whether all ranks are to stop after their batch.
    """

    def __init__(self, folder: Path, world: World, lock: RunLock, stop: SharedStop) -> None:
        self._folder, self._world, self._lock, self._stop = folder, world, lock, stop
        self.pictures = folder / PICTURES
        """Those that are shown."""

    def of_set(self, name: str, show: Show | None = None) -> "SetSoFar":
        """What is there of a set.

        Args:
            show: takes those of its pictures that are shown, for `pictures`.
        """
        return SetSoFar(self._folder, name, show, self._world, self._lock, self._stop)

    def reference(self, look: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
        """A reference set's features by bucket, the same on every rank: what is there, or else ``look()``."""
        file = self._folder / "reference.safetensors"
        kept = load_rows(file) if self._world.is_main else None
        (kept, *_) = self._world.gather(kept)
        if kept is not None:
            return {bucket: rows for (bucket,), rows in kept[0].items()}
        found = look()
        if self._world.is_main:
            self._lock.check()
            with _written(self._folder):
                save_rows(file, {(bucket,): rows for bucket, rows in found.items()}, {})
        return found


class SetSoFar(SoFar):
    """A set's batches on disk. Each is written by one rank, and read by one that may be another."""

    def __init__(
        self, folder: Path, name: str, show: Show | None, world: World, lock: RunLock, stop: SharedStop
    ) -> None:
        self._folder, self._name, self._show = folder, name, show
        self._world, self._lock, self._stop = world, lock, stop

    def there(self) -> list[int]:
        """Numbers of batches whose files are there."""
        return batches_there(self._folder, self._name)

    def load(self, count: int) -> tuple[Collected, float, list[int]]:
        """Each rank reads a share; files that are damaged count as missing."""
        found, seconds, mine = Collected(), 0.0, list[int]()
        for number in self.there()[self._world.rank :: self._world.size]:
            if (kept := load_rows(self._file(number))) is not None:
                rows, facts = kept
                found.take({name: of for (name,), of in rows.items()})
                seconds += float(facts[_SECONDS])
                mine.append(number)
        read = {number for numbers in self._world.gather(mine) for number in numbers}
        return found, seconds, [number for number in range(count) if number not in read]

    def save(self, number: int, rows: list[PromptEntry], images: Tensor, found: Collected, seconds: float) -> None:
        """Pictures first: with the file of numbers the batch is there.

        Raises:
            LaddError: if they cannot be written, or another job has taken the folder over.
        """
        self._lock.check()
        with _written(self._folder):
            if self._show:
                self._show(rows, images)
            keyed: Keyed = {(name,): of for name, of in found.rows().items()}
            save_rows(self._file(number), keyed, {_SECONDS: repr(seconds)})

    def stopping(self) -> bool:
        """A signal to any rank stops all."""
        return self._stop.asked()

    def agree(self) -> None:
        """Leave together if any is to stop: the others may have ended their share before they were asked.

        Raises:
            Requeue: on all ranks, if a signal asked one of them to stop.
        """
        if any(self._world.gather(self._stop.asked())):
            raise Requeue("stopped by a signal: start the same command again, what is drawn is kept")

    def _file(self, number: int) -> Path:
        return batch_file(self._folder, self._name, number)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise LaddError(f"{folder} cannot be written ({reason}): mend that, and start again to go on") from None


@contextmanager
def unfinished(run_dir: Path, source: str, world: World, lock: RunLock, stop: SharedStop) -> Iterator[Unfinished]:
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
        yield Unfinished(folder, world, lock, stop)
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
