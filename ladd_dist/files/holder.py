"""A process as others see it, also from another machine: host, pid, job, and whether it is gone for certain."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PID_NAMESPACE = "/proc/self/ns/pid"


@dataclass(frozen=True)
class Holder:
    """A process that holds something.

    Attributes:
        table: the process table that ``pid`` counts in: this boot of a machine and its pid namespace. Host names do
            not tell containers apart, nor a machine from itself before it was started again. Empty if not known.
        start: when the process started, in the table's own units; tells it from a later one of the same pid.
        job: the scheduler's name of the job, empty without one.
    """

    host: str
    pid: int
    table: str
    start: str
    job: str

    @classmethod
    def me(cls) -> "Holder":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _table(), _start(os.getpid()) or "", job(os.environ))

    def gone(self) -> bool:
        """Whether the process has ended for certain: never true of one that cannot be seen from here."""
        if not self.table or self.table != _table():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's
        start = _start(self.pid)
        return start is not None and start != self.start

    def seen(self) -> bool:
        """Whether the process can be seen from here, and lives."""
        return bool(self.table) and self.table == _table() and not self.gone()

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}" + (f", {self.job}" if self.job else "")


def job(environment: Mapping[str, str]) -> str:
    """What the scheduler or the launcher calls the job that this process belongs to; empty if nobody does."""
    if number := environment.get("SLURM_JOB_ID"):
        return f"Slurm job {number}"
    if "KUBERNETES_SERVICE_HOST" in environment:
        return f"Kubernetes pod {environment.get('POD_NAME') or environment.get('HOSTNAME') or socket.gethostname()}"
    run = environment.get("TORCHELASTIC_RUN_ID", "none")
    return "" if run == "none" else f"torchrun job {run}"  # torchrun's own default is "none"


def _table() -> str:
    with suppress(OSError):
        boot = Path(_BOOT_ID).read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink(_PID_NAMESPACE)}"
    return ""


def _start(pid: int) -> str | None:
    """Start of a process in clock ticks since boot, empty once it is a zombie; None if it cannot be read."""
    with suppress(OSError):
        # The name, in brackets, may hold anything; state is field 3, starttime field 22.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return None
