"""Tasks side by side: as many at once as there are cores to use, each process in one thread."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ladd_dist.studies.plan import Task

_POLL = 0.2
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class _Running:
    """A task under way, in a process group of its own: a terminal's Ctrl-C is for who watches it."""

    def __init__(self, task: Task) -> None:
        self.task, self._left = task, list(task.commands)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        self._next()

    def _next(self) -> None:
        with self.task.log.open("ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(  # noqa: S603 - no shell
                self._left.pop(0),
                env=os.environ | _ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def ended(self) -> str | None:
        """Why the task has failed, nothing if it is done, None if it goes on."""
        code = self.process.poll()
        if code is None:
            return None
        if code:
            return _reason(self.task.log, self._begin, code)
        if self._left:
            self._next()
            return None
        return "" if self.task.done.is_file() else f"{self.task.done} is missing, see {self.task.log}"


def run_tasks(tasks: Iterable[Task], cores: int, ended: Callable[[Task, str], None]) -> None:
    """Run tasks in their order, each after the one that it needs if that is not done.

    However this is left, running processes are asked to stop before, and waited for: a training saves a checkpoint.

    Args:
        cores: tasks at once.
        ended: is told of each, and why it has failed or nothing; a task that needs a failed one fails with it.
    """
    needed = [task.needs for task in tasks if task.needs and not task.needs.done.is_file()]
    waiting, running = list(dict.fromkeys([*needed, *tasks])), list[_Running]()
    failed = dict[Task, str]()

    def end(task: Task, why: str) -> None:
        if why:
            failed[task] = why
        ended(task, why)

    try:
        while waiting or running:
            for task in [task for task in waiting if task.needs in failed]:
                waiting.remove(task)
                end(task, failed[task.needs])  # type: ignore[index]
            ready = [task for task in waiting if task.needs is None or task.needs.done.is_file()]
            for task in ready[: cores - len(running)]:
                waiting.remove(task)
                running.append(_Running(task))
            time.sleep(_POLL)
            for one, why in [(one, why) for one in running if (why := one.ended()) is not None]:
                running.remove(one)
                end(one.task, why)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


def _reason(log: Path, begin: int, code: int) -> str:
    """The launcher's own line if it has left one: behind ``begin``, for the log has those of earlier attempts too."""
    said = log.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()
    errors = (line.removeprefix("error: ") for line in reversed(said) if line.startswith("error: "))
    return next(errors, f"code {code}, see {log}")
