"""A real Slurm for tests: nodes that are namespaces of this machine, and what is submitted to them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from system import require

from ladd_dist.config.yaml import write_yaml

ROOT = Path(__file__).parent.parent
HANG = 600
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_SCRIPT = ROOT / "tests/slurm_cluster.sh"
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare")


class Slurm:
    """A started cluster of nodes n1, n2, ...

    Args:
        folder: everything of the cluster's own is in there.
        programs: what the jobs take for their virtual environment.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        number = os.getpid()
        self._names = {"LADD_SLURM_TAG": f"ladd{number % 10_000}", "LADD_SLURM_NET": f"10.78.{number % 250}"}
        self._env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def act(self, what: str, *arguments: str) -> None:
        """Do what ``tests/slurm_cluster.sh`` does."""
        command = [str(_SCRIPT), what, str(self.folder), *arguments]
        done = subprocess.run(command, env=os.environ | self._names, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, done.stdout + done.stderr

    def call(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def try_submit(self, *arguments: str, **cluster: Any) -> subprocess.CompletedProcess[str]:
        """``launchers/slurm/submit.py`` with a cluster file of these keys."""
        file = self.folder / "cluster.yaml"
        write_yaml(file, {"gpus_per_node": 0, "time": "10", "venv": str(self._programs)} | cluster)
        command = [sys.executable, "launchers/slurm/submit.py", "--cluster", str(file), *arguments]
        return subprocess.run(command, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=HANG)

    def submit(self, *arguments: str, **cluster: Any) -> list[str]:
        """The numbers of the jobs."""
        done = self.try_submit(*arguments, **cluster)
        assert done.returncode == 0, done.stderr
        return [line.partition(":")[0].removeprefix("job ") for line in done.stdout.splitlines()]

    def show(self, job: str) -> dict[str, str]:
        """Fields of a job, as long as Slurm remembers it."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def wait_for(self, job: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        self.wait_until(lambda: self.show(job)["JobState"] in states, f"job {job} to be {' or '.join(states)}")
        return self.show(job)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something; if it does not come, show what Slurm has."""
        deadline = time.monotonic() + HANG
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.call('scontrol', 'show', 'job')}"
            time.sleep(0.2)


@contextmanager
def started(folder: Path, programs: Path, nodes: int) -> Iterator[Slurm]:
    """A cluster for as long as it is needed."""
    require(*_PROGRAMS, trial=("unshare", "-n", "-m", "-p", "-f", "true"))
    slurm = Slurm(folder, programs)
    try:
        slurm.act("start", str(nodes))
        yield slurm
    finally:
        slurm.act("stop")
