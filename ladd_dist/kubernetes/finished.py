"""A mark in a job's folder that its work is done, for pods that are started again after that.

A Job starts no completed pod a second time. One that is replaced although the work is done, for a rank that crashed
while it was leaving or for an eviction just then, would wait for the others for ever. So a pod whose ranks have all
ended well leaves a mark, named by the Job's own uid: a Job that is made anew, such as by a JobSet that restarts all
pods, has another. Ranks end well only once the work of all of them is done; rank 0 alone may still draw a page, which
no other start would draw either.
"""

import os
from contextlib import suppress
from pathlib import Path

from ladd_dist.jobs.cluster import DATASETS, JOB_UID

_NAME = ".finished-"


class Mark:
    """A Job's mark; without the Job's uid there is none.

    Args:
        job: the job's name, which says in which folder it writes.
        data: the dataset's folder.
    """

    def __init__(self, job: str, run_dir: Path, data: Path) -> None:
        uid = os.environ.get(JOB_UID)
        self._path = (data if job in DATASETS else run_dir) / f"{_NAME}{uid}" if uid else None

    def is_there(self) -> bool:
        """Whether the Job's work is known to be done."""
        with suppress(OSError):  # a file server that does not answer now is asked again
            return self._path is not None and self._path.exists()
        return False

    def leave(self) -> None:
        """Say that the Job's work is done.

        Raises:
            OSError: if that cannot be written.
        """
        if self._path is not None:
            self._path.touch()
