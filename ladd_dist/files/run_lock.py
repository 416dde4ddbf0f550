"""A folder belongs to one job at a time, on file systems that several machines share.

The holder keeps a small file in the folder, ``.lock-N``, and changes it every `BEAT` seconds from a thread. It is
regarded as dead when its process is gone from this machine, at once, or when whoever waits has not seen the file
change for `DEAD_AFTER` seconds by a clock of its own: clocks of two machines are never compared, and no lock of the
operating system is needed, which shared file systems keep or do not keep. A copy of the folder holds a copy of the
file, which names another inode than its own: it is watched for as long, even if the process lives here.

Files are made exclusively, under the number after the highest that is there, so that of several who take over a dead
holder's folder one wins; it then removes the dead one's file. A holder that was only slow, or stopped, finds its file
gone and must write no more (`RunLock.check`).
"""

import json
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.files.holder import Holder
from ladd_dist.files.lock_file import DEAD_AFTER, NAME, Watch, holder_of, lock_files, number
from ladd_dist.log import log

BEAT = 2.0
"""Seconds between two changes of the file."""
PATIENCE = 60.0
"""Seconds that a start of the same job, requeued or restarted, waits for a living holder to leave."""
_POLL = 0.5
_LINGER = 3.0
"""Seconds that leaving may take; a file server that does not answer must not keep a process."""


class RunLock:
    """One job's sole right to write in a folder. Before `acquire` it holds none, and `check` never raises."""

    def __init__(self) -> None:
        self.lost = ""
        """Who has taken the folder over, as an error's line; empty while it is ours."""
        self._path: Path | None = None
        self._mine, self._beats, self._renewed = b"", 0, 0.0
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def acquire(self, folder: str | Path, key: str, world: World) -> None:
        """Hold ``folder``, which is made if need be: rank 0 takes it, and all ranks learn what became of it.

        Args:
            key: the setting that names the folder.

        Raises:
            LaddError: on every rank alike, naming the holder, if another job lives in the folder, or if it cannot be
                written to.
        """
        self._what = f"{key}={folder}"
        problem = ""
        if world.is_main:
            try:
                self._wait_for(Path(folder))
            except LaddError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{self._what} cannot be written to ({error}): set it to a folder that all ranks share"
        if problem := world.gather(problem)[0]:
            raise LaddError(problem)

    def check(self) -> None:
        """To be called before something is written; costs nothing while the thread keeps time.

        Raises:
            LaddError: if another job has taken the folder over.
        """
        # Nobody has waited for `DEAD_AFTER` yet where the last change is younger.
        if self._path and not self.lost and _now() - self._renewed > DEAD_AFTER / 2:
            self._confirm()
        if self.lost:
            raise LaddError(self.lost)

    def release(self) -> None:
        """Let the next job in. May be called from any thread, and again."""
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join(_LINGER)

    def _wait_for(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        me, watch, said, begin = Holder.me(), Watch(), False, _now()
        while True:
            files = lock_files(folder)
            living = watch.living(files, _now())
            if not living and self._claim(folder, files, me):
                return
            for path, alive in living.items():
                holder = holder_of(files[path])
                ours = holder is not None and holder.job == me.job != ""
                if alive and not (ours and _now() - begin < PATIENCE):
                    remedy = "wait for it, stop it, or choose another folder"
                    raise LaddError(f"{self._what} belongs to a job that is running ({holder or path}): {remedy}")
                if not said:
                    said, limit = True, PATIENCE if alive else DEAD_AFTER
                    log(f"waiting up to {limit:.0f} s for {holder or path}, which may still hold {self._what}")
            time.sleep(_POLL * random.SystemRandom().uniform(0.5, 1))  # apart from others that wait

    def _claim(self, folder: Path, dead: dict[Path, bytes], me: Holder) -> bool:
        """Take a folder in which all that is there belongs to the dead; returns whether it is ours."""
        path = folder / f"{NAME}{max(map(number, dead), default=0) + 1}"
        self._renewed = _now()
        try:
            with path.open("xb") as file:
                lines = (json.dumps(asdict(me)), os.fstat(file.fileno()).st_ino, os.urandom(8).hex())
                self._mine = "".join(f"{line}\n" for line in lines).encode()
                file.write(self._mine + _count(0))
        except FileExistsError:
            return False
        others = lock_files(folder)
        del others[path]
        # Somebody may have come and gone since the dead were listed, and numbers begin anew in an empty folder.
        if any(dead.get(other) != content for other, content in others.items()):
            path.unlink()
            return False
        for other in others:
            other.unlink(missing_ok=True)
        self._path = path
        self._thread.start()
        return True

    def _beat(self) -> None:
        while not self.lost and not self._leave.wait(BEAT):
            try:
                self._renew()
            except OSError:
                continue  # whether it is still ours will show when the file server answers again
        with suppress(OSError):
            if self._path and self._is_ours():
                self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        now, path = _now(), self._path
        assert path is not None
        # Neither made anew nor replaced: a file that somebody has removed must stay removed.
        try:
            with path.open("r+b") as file:
                ours = file.read(len(self._mine)) == self._mine
                if ours:
                    self._beats += 1
                    file.write(_count(self._beats))
        except FileNotFoundError:
            ours = False
        if ours:
            self._renewed = now
        else:
            self._lose()

    def _confirm(self) -> None:
        try:
            ours = self._is_ours()
        except OSError as error:
            reason = f"whether {self._what} still belongs to this job cannot be read ({error})"
            raise LaddError(f"{reason}: see to its file system, then start again") from None
        if not ours:
            self._lose()

    def _is_ours(self) -> bool:
        assert self._path is not None
        try:
            return self._path.read_bytes().startswith(self._mine)
        except FileNotFoundError:
            return False

    def _lose(self) -> None:
        assert self._path is not None
        others = [str(holder) for holder in map(holder_of, lock_files(self._path.parent).values()) if holder]
        self.lost = (
            f"{self._what} was taken over by another job ({', '.join(others) or 'which has ended'}) after this one "
            f"had stood still for {DEAD_AFTER:.0f} s: nothing more is written, let the other one go on"
        )


def _count(beats: int) -> bytes:
    return b"%020d\n" % beats


def _now() -> float:
    """Seconds, also those in which this process or its machine stands still."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
