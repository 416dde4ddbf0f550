"""Names in a run's folder: an evaluation, beside it the baselines, and hidden what is not finished."""

from pathlib import Path

FOLDER = "evaluation"
"""Of the newest evaluation that is finished."""
RESULTS, PICTURES, INDEX = "results.json", "pictures", "index.json"
"""In an evaluation's folder; the last in that of the pictures."""
BASELINES = "baselines"
"""The teacher's sets, for all evaluations."""
REFERENCE_ROWS = "reference.safetensors"
"""In a folder of sets, beside ``sets`` and pictures."""
_DRAWN = f".{FOLDER}.drawn-"
_BATCH = "[0-9]*.safetensors"


def drawn_folder(run_dir: Path, source: str) -> Path:
    """Of what an unfinished evaluation has drawn.

    Args:
        source: all that its pictures depend on, as a digest.
    """
    return run_dir / f"{_DRAWN}{source}"


def drawn_folders(run_dir: Path) -> list[Path]:
    """Those of all unfinished evaluations."""
    return sorted(run_dir.glob(f"{_DRAWN}*"))


def baselines_folder(run_dir: Path, source: str) -> Path:
    """Of baselines.

    Args:
        source: all that they depend on, as a digest.
    """
    return run_dir / BASELINES / source


def batches_there(folder: Path, name: str) -> list[int]:
    """Numbers of a set's batches whose files are there, ascending."""
    return sorted(int(file.stem) for file in batch_file(folder, name, 0).parent.glob(_BATCH))


def batch_file(folder: Path, name: str, number: int) -> Path:
    """Of a batch of a set's pictures: it is whole or not there."""
    return folder / "sets" / name / f"{number:06d}.safetensors"


def count_batches(run_dir: Path) -> int:
    """How many batches evaluations have drawn, of baselines and of students of whom more are to come."""
    folders = [*run_dir.glob(f"{BASELINES}/*"), *drawn_folders(run_dir)]
    return sum(1 for folder in folders for _ in folder.glob(f"sets/*/{_BATCH}"))
