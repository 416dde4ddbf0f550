"""The folder that a job writes in: can every rank write there, how fast, with how much room, and is it one folder."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.preflight.findings import Finding, RankPlace, and_more, hosts_of

BYTES = 8 << 20
"""Enough for a file server to be asked, and done within seconds by hundreds of ranks at once."""
STOP = "PET_SHUTDOWN_TIMEOUT"
"""torchrun's variable: so many seconds after a signal it kills ranks that are still there."""
_PATIENCE, _POLL = 5.0, 0.05
"""NFS hands out what it knows of a file for 3 s (``acregmin``, nfs(5)) before it asks again."""


@dataclass(frozen=True)
class Room:
    """Bytes that a job will write, and how many of them in one checkpoint; 0 where nobody knows."""

    total: int = 0
    at_once: int = 0


@dataclass(frozen=True)
class Written:
    """A file that a rank has written, and room beside it; ``total`` is 0 where the file system does not say."""

    name: str
    seconds: float
    free: int
    total: int
    problem: str


@dataclass(frozen=True)
class Seen:
    """Ranks whose files this rank has looked for and not found."""

    missing: tuple[int, ...]


def nearest(folder: Path) -> Path:
    """The folder, or the nearest around it that is there: what is only looked at is not made."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))


@contextmanager
def written(folder: Path, rank: int) -> Iterator[Written]:
    """Write a file into ``folder``; what is left of it is small, and gone behind the block."""
    file = folder / f".preflight-{rank}-{secrets.token_hex(8)}"
    try:
        yield _write(file)
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _write(file: Path) -> Written:
    begin, content = time.monotonic(), os.urandom(BYTES)
    try:
        with file.open("xb", buffering=0) as out:
            begin = time.monotonic()
            if out.write(content) < BYTES:
                out.write(content[:1])  # the rest did not fit, and this says why
            os.fsync(out.fileno())
            seconds = time.monotonic() - begin
            out.truncate(0)
        status = os.statvfs(file.parent)
    except OSError as error:
        return Written(file.name, 0.0, 0, 0, error.strerror or str(error))
    return Written(file.name, seconds, status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize, "")


def look_for(folder: Path, names: dict[int, str]) -> Seen:
    """Look for other ranks' files, by their names: a listing may be an old one."""
    deadline, missing = time.monotonic() + _PATIENCE, dict(names)
    while True:
        missing = {rank: name for rank, name in missing.items() if not os.path.exists(folder / name)}
        if not missing or time.monotonic() > deadline:
            return Seen(tuple(missing))
        time.sleep(_POLL)


def time_limits(config: Config, env: Mapping[str, str]) -> dict[str, float]:
    """Seconds that writing a checkpoint may take, by the name and value of what sets them.

    Launchers on Slurm and Kubernetes say in the environment how long ranks may take to save and leave.
    """
    found = {f"train.hang_timeout={config.train.hang_timeout:g}": config.train.hang_timeout}
    if (stop := env.get(STOP, "")).isdecimal():
        found[f"{STOP}={stop}, which is the cluster file's signal_seconds, or grace_seconds less 30"] = float(stop)
    return found


def judge_written(
    ranks: Sequence[Written], places: Sequence[RankPlace], where: str, room: Room, limits: Mapping[str, float]
) -> Finding:
    """Whether every rank can write, and what is to be written will fit.

    Args:
        where: the folder, as its key and value.
        limits: seconds that writing a checkpoint may take, by what sets them.
    """
    if bad := [place for place in places if ranks[place.rank].problem]:
        who, reason = and_more(str(bad[0]), len(bad)), ranks[bad[0].rank].problem
        text = f"{where} cannot be written to by {who} ({reason})"
        text = f"{text}: make room, or choose a folder that all ranks share"
        return Finding("folder", "failed", text, hosts_of(bad, places))
    least = min(places, key=lambda place: ranks[place.rank].free)
    slowest = max(places, key=lambda place: ranks[place.rank].seconds)
    free, rate = ranks[least.rank].free, len(ranks) * BYTES / max(ranks[slowest.rank].seconds, 1e-6)
    text = f"{where}: {free / 1e9:.4g} GB free, {room.total / 1e9:.3g} needed"
    if ranks[least.rank].total and free < room.total:
        return Finding("folder", "failed", f"{text} (seen by {least}): make room, or choose another folder")
    text = f"{text}; {rate / 1e9:.2g} GB/s, slowest {slowest}"
    least_name = min(limits, key=lambda name: limits[name])
    if room.at_once / rate > limits[least_name]:
        much = f"a checkpoint takes {room.at_once / rate:.0f} s, longer than {least_name}: raise it"
        return Finding("folder", "warning", f"{text}: {much}")
    return Finding("folder", "ok", text)


def judge_seen(ranks: Sequence[Seen], places: Sequence[RankPlace], where: str) -> Finding:
    """Whether rank 0 and every other one see each other's files."""
    lonely = sorted({rank for rank, seen in enumerate(ranks) if rank and seen.missing} | set(ranks[0].missing))
    if not lonely:
        return Finding("one folder", "ok", "rank 0 and all others see each other's files")
    who = and_more(str(places[lonely[0]]), len(lonely))
    text = f"{where} is not one folder: {who} and {places[0]} do not see each other's files"
    text = f"{text}: set it to a folder that all ranks share"
    return Finding("one folder", "failed", text, hosts_of([places[rank] for rank in lonely], places[1:]))
