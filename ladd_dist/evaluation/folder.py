"""The folder of an evaluation: all ranks write it beside an earlier one, whose place it takes once it is whole."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.evaluation.results import FOLDER
from ladd_dist.files.disk import real_path
from ladd_dist.files.folders import check_replaceable, replacing

_ELSEWHERE = "set another run_dir"


def evaluation_place(config: Config) -> Path:
    """Where results are to be, as a `real_path`; costs nothing, so ask first.

    Raises:
        LaddError: if something else than an earlier evaluation is there, or if it cannot be made.
    """
    place = real_path(Path(config.run_dir) / FOLDER)
    check_replaceable(place, FOLDER, elsewhere=_ELSEWHERE)
    return place


@contextmanager
def new_evaluation(place: Path, world: World) -> Iterator[Path]:
    """A new folder for every rank to write into, which is at ``place`` when all have left the block well.

    Raises:
        LaddError: as `evaluation_place`, or if it cannot be written.
    """
    with replacing(place, FOLDER, elsewhere=_ELSEWHERE) if world.is_main else nullcontext() as own:
        (folder, *_) = world.gather(own)
        yield folder
        world.barrier()
