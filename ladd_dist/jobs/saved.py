"""Whether a job gets anywhere."""

from pathlib import Path

from ladd_dist.checkpoints.folders import newest_iteration
from ladd_dist.data.parts import count_parts
from ladd_dist.evaluation.places import count_batches
from ladd_dist.jobs.cluster import DATASETS


def saved(job: str, run_dir: Path, data: Path) -> int:
    """How much of a job would not have to be done again, going by the names on disk alone.

    Args:
        job: its name.
        data: the dataset's folder.

    Returns:
        Iterations of training, parts of the dataset, or batches of an evaluation that is not finished; 0 for jobs
        that keep nothing before their end.
    """
    if job == "train":
        return newest_iteration(run_dir)
    if job == "evaluate":
        return count_batches(run_dir)
    return count_parts(data) if job in DATASETS else 0
