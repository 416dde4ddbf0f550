"""How every process of a job ended, in a folder for who started them.

A launcher's own exit code says little: torchrun ends with 1 whatever its ranks end with, srun with the greatest code
of all. So under ``LADD_EXITS=FOLDER`` every process leaves a file there when it starts, and says in it how it ends.
One that was killed has not said it.
"""

import json
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from ladd_dist.distributed.hanging import hangs
from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_PEER_LOST, EXIT_REQUEUE, LaddError

VARIABLE = "LADD_EXITS"
_SUFFIX = ".exit"


@dataclass(frozen=True)
class Exit:
    """A process and its end.

    Attributes:
        node: what the scheduler calls its host.
        code: exit code; None if it has not ended by itself.
        reason: why, in one line; empty if all went well.
        blamed: hosts of other processes for whose sake this one ended.
    """

    node: str
    host: str
    pid: int
    code: int | None = None
    reason: str = ""
    blamed: tuple[str, ...] = ()


def enter() -> None:
    """Say that this process has started, if anybody asks for it.

    Raises:
        LaddError: if the folder cannot be written.
    """
    if VARIABLE not in os.environ:
        return
    host = socket.gethostname()
    try:
        _write(Exit(os.environ.get("SLURMD_NODENAME", host), host, os.getpid()))
    except OSError as error:
        raise LaddError(f"{VARIABLE}={os.environ[VARIABLE]} cannot be written ({error.strerror})") from None


def leave(code: int, reason: str = "", blamed: Iterable[str] = ()) -> None:
    """Say how this process ends; a folder that is gone by now does not keep it from ending."""
    if VARIABLE in os.environ:
        with suppress(OSError, ValueError):
            _write(replace(_read(_mine()), code=code, reason=" ".join(reason.split()), blamed=tuple(blamed)))


def end(code: int) -> NoReturn:
    """End the process, at once if a thread of it hangs in a connection."""
    if hangs():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def read(folder: Path) -> list[Exit]:
    """What all processes have said so far: nothing, where a node that lost its power left an empty file."""
    return [_read_or_unsaid(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))]


def exit_code(ends: list[Exit], launcher_code: int) -> int:
    """The code of all processes together.

    Bad input is not mended by another start. A rank that was lost, or that failed alone, may be its node's fault.
    Where some fell silent and none says why, one was lost, too: NCCL ends the process of whoever is connected to it,
    before anybody can tell. What no rank has said, the launcher's own code says. Where all have said 0 the work is
    done, even if one crashed after that.
    """
    said = {end.code for end in ends}
    if said == {0}:
        return 0
    for code in (EXIT_BAD_INPUT, EXIT_PEER_LOST, EXIT_REQUEUE):
        if code in said:
            return code
    if launcher_code and len(ends) > 1 and None in said and said <= {None, 0}:
        return EXIT_PEER_LOST
    return max((code for code in said if code), default=launcher_code) if launcher_code else 0


def reason(ends: list[Exit]) -> str:
    """Why they ended, as the first of them says it; empty if all went well."""
    return next((end.reason for end in ends if end.reason), "")


def _mine() -> Path:
    return Path(os.environ[VARIABLE]) / f"{socket.gethostname()}-{os.getpid()}{_SUFFIX}"


def _write(own: Exit) -> None:
    temporary = _mine().with_suffix(".new")
    temporary.write_text(json.dumps(asdict(own)), encoding="utf-8")
    temporary.replace(_mine())


def _read_or_unsaid(path: Path) -> Exit:
    try:
        return _read(path)
    except ValueError:
        host, _, pid = path.stem.rpartition("-")
        return Exit(host, host, int(pid))


def _read(path: Path) -> Exit:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Exit(**(fields | {"blamed": tuple(fields["blamed"])}))
