"""The page of a run that goes on: kept by a program beside the training, which never waits for it and may lose it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.log import warn

NEWS, END = b"\n", b"."
_LAST_PAGE = 10.0
"""Seconds that a training which ends waits for its last page: few, since what has stopped it may be impatient."""
_LOWEST_PRIORITY = 19


class LivePage:
    """Has ``run_dir/report/index.html`` rewritten every ``tracking.page_every`` seconds, on rank 0.

    A program of the lowest priority (`report.live`) makes it of the run's files. It starts with the first row after
    that time: a run that takes less has no such page. If the program fails, one warning says so.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._every, self._folder, self._begin = config.tracking.page_every, folder, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def write(self) -> None:
        """There is something new: a row, or pictures. Waits for nothing."""
        if self._process is None and self._every and time.monotonic() - self._begin >= self._every:
            self._start()
        self._say(NEWS)

    def close(self) -> None:
        """Have the last page written, and see the program out."""
        self._say(END)
        if self._process is None:
            return
        try:
            code = self._process.wait(_LAST_PAGE)
        except subprocess.TimeoutExpired:
            self._lose(f"the last one takes more than {_LAST_PAGE:g} s")
        else:
            if code:
                self._lose(self._reason(code))

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the program's, until it ends
        # Of this process it has only a pipe, which the system closes if this process is killed. -P: no other module
        # of the working directory. A process group of its own: a terminal's Ctrl-C is for the training. No session of
        # its own: Linux may share out processor time by sessions, where low priority counts within each alone.
        command = [sys.executable, "-P", "-m", "ladd_dist.report.live", str(self._folder), str(self._every)]
        alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - no shell
                command,
                bufsize=0,
                env=os.environ | alone,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                process_group=0,
            )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)
            os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]
        except OSError as error:
            self._lose(str(error))

    def _say(self, word: bytes) -> None:
        if self._process is None:
            return
        if code := self._process.poll():
            self._lose(self._reason(code))
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)  # nothing is written into a full pipe, and there is news enough in it
        except OSError:
            self._process.wait()
            self._lose(self._reason(self._process.returncode))

    def _reason(self, code: int) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"its program ended with code {code}")

    def _lose(self, why: str) -> None:
        self._every = 0
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        warn(f"the page of the run is no longer written ({why}): the run goes on, metrics.jsonl has everything")
