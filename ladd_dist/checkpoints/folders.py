"""What lies in a run's ``checkpoints/``: how checkpoints are named, which there are, and which are pinned.

A checkpoint is pinned by a file beside it, ``step-00000500.pinned``: pruning leaves it alone until the file is gone,
and does not count it among those it keeps. The file is empty, or holds a mark of the code that made it.
"""

from pathlib import Path

LATEST = "latest"
"""The file that names the newest checkpoint."""
STEP_FOLDERS = "step-" + "[0-9]" * 8
"""A glob for folders that a run has named itself: what else lies beside them is the user's."""

GUARD = "guard"
"""Mark of the pins that the guard against collapse sets."""
_PINNED = ".pinned"


def checkpoints_of(run_dir: str | Path) -> Path:
    """The folder that holds a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def step_folder(run_dir: str | Path, iteration: int) -> Path:
    """Where a run's checkpoint of an iteration is, there or not."""
    return checkpoints_of(run_dir) / f"step-{iteration:08d}"


def candidates(run_dir: str | Path) -> list[Path]:
    """A run's checkpoints: the one that ``latest`` points to, there or not, then the others from new to old."""
    root = checkpoints_of(run_dir)
    pointer = root / LATEST
    pointed = [root / pointer.read_text(encoding="utf-8", errors="replace").strip()] if pointer.is_file() else []
    return pointed + [path for path in sorted(root.glob(STEP_FOLDERS), reverse=True) if path not in pointed]


def newest_iteration(run_dir: str | Path) -> int:
    """The newest checkpoint's iteration, going by the names alone; 0 without one."""
    found = (path for path in checkpoints_of(run_dir).glob(STEP_FOLDERS) if path.is_dir())
    return max(map(_iteration, found), default=0)


def pin(folder: Path, mark: str = "") -> None:
    """Keep a checkpoint from being pruned, also one that is still being written; call it on one rank.

    A run that has gone back still replaces it when it comes to the same iteration again.

    Args:
        mark: who pins; a pin without a mark is a user's, and is left as it is.
    """
    if not is_pinned(folder):
        _marker(folder).write_text(mark, encoding="utf-8")


def pinned_by(run_dir: str | Path, mark: str) -> list[int]:
    """Iterations of the whole checkpoints with a mark's pins, ascending."""
    found = (iteration for iteration in _marked(run_dir, mark) if step_folder(run_dir, iteration).is_dir())
    return sorted(found)


def unpin_after(run_dir: str | Path, iteration: int, mark: str) -> None:
    """Remove a mark's pins of checkpoints after an iteration, written or not."""
    for later in [at for at in _marked(run_dir, mark) if at > iteration]:
        unpin(step_folder(run_dir, later))


def _marked(run_dir: str | Path, mark: str) -> list[int]:
    markers = checkpoints_of(run_dir).glob(f"{STEP_FOLDERS}{_PINNED}")
    return [_iteration(path) for path in markers if path.read_text(encoding="utf-8") == mark]


def unpin(folder: Path) -> None:
    """Let a checkpoint be pruned again; harmless if it is not pinned."""
    _marker(folder).unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    """Whether pruning leaves a checkpoint alone."""
    return _marker(folder).exists()


def _marker(folder: Path) -> Path:
    return folder.with_name(folder.name + _PINNED)


def _iteration(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix(_PINNED))
