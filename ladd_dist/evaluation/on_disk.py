"""Sets on disk, batch by batch as they are drawn: whoever draws them goes on with what is there.

    FOLDER/sets/SET/000012.safetensors   numbers of a batch of pictures, and its seconds
          /reference.safetensors         the judge's features of a reference set
          /pictures/                     those that are shown

Batches are cut from the list of pictures, whatever the number of ranks, and each has noise of its own: another number
of ranks goes on with what is there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.evaluation.draw import SoFar
from ladd_dist.evaluation.drawn import Collected, Keyed, Rows, load_rows, save_rows
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.instruments import BROKEN
from ladd_dist.evaluation.places import PICTURES, REFERENCE_ROWS, batch_file, batches_there
from ladd_dist.supervision.requests import SharedStop

_SECONDS = "seconds"


class SetsOnDisk:
    """A folder of sets.

    Args:
        stop: whether all ranks are to stop after their batch.
        check: called before anything is written; it raises a LaddError if the folder is no longer this job's.
    """

    def __init__(
        self, folder: Path, world: World, stop: SharedStop, check: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._world, self._stop, self._check = folder, world, stop, check
        self.pictures = folder / PICTURES
        """Those that are shown."""

    def of_set(self, name: str, gallery: Gallery | None = None) -> "SetSoFar":
        """What is there of a set.

        Args:
            gallery: whose pictures are kept in `pictures`.
        """
        return SetSoFar(self._folder, name, gallery, self._world, self._stop, self._check)

    def reference(self, look: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
        """A reference set's features by bucket, the same on every rank: what is there, or else ``look()``."""
        file = self._folder / REFERENCE_ROWS
        kept = load_rows(file) if self._world.is_main else None
        (kept, *_) = self._world.gather(kept)
        if kept is not None:
            return {bucket: rows for (bucket,), rows in kept[0].items()}
        found = look()
        if self._world.is_main:
            self._check()
            with _written(self._folder):
                save_rows(file, {(bucket,): rows for bucket, rows in found.items()}, {})
        return found


class SetSoFar(SoFar):
    """A set's batches on disk. Each is written by one rank, and read by one that may be another."""

    def __init__(
        self,
        folder: Path,
        name: str,
        gallery: Gallery | None,
        world: World,
        stop: SharedStop,
        check: Callable[[], None],
    ) -> None:
        self._folder, self._name, self._gallery = folder, name, gallery
        self._pictures = folder / PICTURES / name
        self._world, self._stop, self._check = world, stop, check

    def there(self) -> list[int]:
        """Numbers of batches whose files are there."""
        return batches_there(self._folder, self._name)

    def load(self, count: int) -> tuple[Collected, float, list[int]]:
        """Each rank reads those of its own numbers; batches that are damaged or lack pictures to show are missing."""
        found, seconds, mine = Collected(), 0.0, list[int]()
        for number in self.there():
            # By number, not by place in the list: ranks may see other files, while another job writes some.
            if number % self._world.size != self._world.rank or (kept := load_rows(self._file(number))) is None:
                continue
            rows, facts = kept
            if self._shown(rows[(BROKEN,)].pictures.tolist()):
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
        self._check()
        with _written(self._folder):
            if self._gallery:
                self._gallery.keep(self._pictures, rows, images)
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

    def _shown(self, numbers: list[int]) -> bool:
        """Whether those that are to be shown of some pictures can be."""
        return self._gallery is None or self._gallery.has(self._pictures, numbers)

    def _file(self, number: int) -> Path:
        return batch_file(self._folder, self._name, number)


def count_there(of_sets: Iterable[SetSoFar], batches: Sequence[Sequence[PromptEntry]]) -> int:
    """How many pictures of sets of these batches are there."""
    return sum(len(batches[number]) for of_set in of_sets for number in of_set.there())


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise LaddError(f"{folder} cannot be written ({reason}): mend that, and start again to go on") from None
