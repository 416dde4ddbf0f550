"""Where a command may write a folder of its own: beside what a run needs and writes, never over it or into it."""

from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.errors import LaddError
from ladd_dist.files.disk import real_path

_RUN_WRITES = {
    "checkpoints",
    "evaluation",
    "export",
    "previews",
    "profile",
    "report",
    "samples",
    "slurm",
    "studies",
    "wandb",
}
"""What lies in a run's folder."""


def own_place(config: Config, out: str | Path | None, name: str) -> Path:
    """The folder that a command is to write, as a `real_path`.

    Where the configured folders lie in one another, the innermost decides. The run's alone lets new names in.

    Args:
        out: as given by the user; None is ``RUN_DIR/name``.
        name: the command's own folder in the run's.

    Raises:
        LaddError: if it is the teacher, student, dataset or run, or lies in or around one of them.
    """
    folder = real_path(Path(config.run_dir) / name if out is None else out)
    given = {"teacher.path": config.teacher.path, "data.path": config.data.path, "run_dir": config.run_dir}
    if config.student.path is not None:
        given["student.path"] = config.student.path
    places = {key: real_path(path) for key, path in given.items()}

    def refusal(how: str, key: str) -> LaddError:
        return LaddError(
            f"{folder} {how} {key}={given[key]}, which no {name} may replace: choose another folder with --out"
        )

    for key, place in places.items():
        if place.is_relative_to(folder):
            raise refusal("is" if place == folder else "holds", key)
    around = [key for key, place in places.items() if folder.is_relative_to(place)]
    innermost = max(around, key=lambda key: (len(places[key].parts), key == "run_dir"), default=None)
    new_in_run = innermost == "run_dir" and _first(folder, places["run_dir"]) not in _RUN_WRITES - {name}
    if innermost and not new_in_run:
        raise refusal("lies in", innermost)
    return folder


def _first(folder: Path, place: Path) -> str:
    return folder.relative_to(place).parts[0]
