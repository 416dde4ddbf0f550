"""The folder of an evaluation: written beside an earlier one, whose place it takes once it is whole."""

from contextlib import AbstractContextManager
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.evaluation.places import FOLDER
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


def new_evaluation(place: Path) -> AbstractContextManager[Path]:
    """A new folder to write into, which is at ``place`` when the block has ended well.

    Raises:
        LaddError: as `evaluation_place`, or if it cannot be written.
    """
    return replacing(place, FOLDER, elsewhere=_ELSEWHERE)
