"""What lies in a run's ``checkpoints/``: how checkpoints are named, which there are, and which are pinned.

A checkpoint is pinned by an empty file beside it, ``step-00000500.pinned``: pruning leaves it alone until the file is
gone, and does not count it among those it keeps.
"""

from pathlib import Path

LATEST = "latest"
"""The file that names the newest checkpoint."""
STEP_FOLDERS = "step-" + "[0-9]" * 8
"""A glob for folders that a run has named itself: what else lies beside them is the user's."""


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
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def pin(folder: Path) -> None:
    """Keep a checkpoint from being pruned, also one that is still being written; call it on one rank.

    A run that has gone back still replaces it when it comes to the same iteration again.
    """
    _marker(folder).touch()


def unpin(folder: Path) -> None:
    """Let a checkpoint be pruned again; harmless if it is not pinned."""
    _marker(folder).unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    """Whether pruning leaves a checkpoint alone."""
    return _marker(folder).exists()


def _marker(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.pinned")
