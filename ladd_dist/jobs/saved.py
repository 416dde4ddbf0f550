"""Whether a job gets anywhere."""

from pathlib import Path

from ladd_dist.checkpoints.folders import newest_iteration
from ladd_dist.data.parts import count_parts


def saved(job: str, run_dir: Path, data: Path) -> int:
    """How much of a job would not have to be done again, going by the names on disk alone.

    Args:
        job: its name.
        data: the dataset's folder.

    Returns:
        Iterations of training, or parts of the dataset; 0 for jobs that keep nothing before their end.
    """
    if job == "train":
        return newest_iteration(run_dir)
    return count_parts(data) if job == "synthesize" else 0
