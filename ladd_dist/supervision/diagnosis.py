"""Who is to blame when a job of many ranks stops: a pure function of what was last heard from each of them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

_NAMED = 8
"""So many ranks are named one by one; a lost rack of 72 needs no longer line."""

RankState = Literal["runs", "done", "failed", "refused", "left"]
"""``failed`` and ``refused`` (bad input, or a node's fault that all ranks hear of) ended with an error of their own,
``left`` with another rank's."""


class Beat(NamedTuple):
    """What a rank says of itself, about once a second. ``pulse`` grows with every beat, whatever the work does."""

    host: str
    pid: int
    pulse: int
    state: RankState
    iteration: int
    step: int
    """Phases entered in this iteration; 0 in iteration 0 for work that does not say where it stands."""
    phase: str
    error: str

    @property
    def place(self) -> tuple[int, int]:
        """How far the rank is."""
        return self.iteration, self.step

    @property
    def where(self) -> str:
        """The same for people."""
        return f"in iteration {self.iteration}, {self.phase}" if self.step else "before its first iteration"


@dataclass(frozen=True)
class Sighting:
    """An observer's view of a rank: its newest beat (None: not one yet) and for how many seconds
    the beat has not changed (``silent``) and the place has not changed (``still``)."""

    beat: Beat | None
    silent: float
    still: float

    @property
    def runs(self) -> bool:
        """Whether the rank should still be there."""
        return self.beat is None or self.beat.state == "runs"


class Diagnosis(NamedTuple):
    """Why the job ends."""

    text: str
    found_by: int | None
    """The rank that found it and prints it; None where the ranks cannot agree on one."""
    gone: tuple[int, ...] = ()
    """Ranks that need not be waited for."""
    dumps: tuple[int, ...] = ()
    """Ranks that show where their threads are."""
    patient: bool = False
    """Bad input: probably every rank is about to say the same, in its own words."""
    hosts: tuple[str, ...] = ()
    """Where the ranks at fault run, as far as that is known."""

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(self)

    @staticmethod
    def of_json(text: str | bytes) -> "Diagnosis":
        """The inverse of `to_json`."""
        reason, found_by, gone, dumps, patient, hosts = json.loads(text)
        return Diagnosis(reason, found_by, tuple(gone), tuple(dumps), patient, tuple(hosts))


def diagnose(
    seen: Mapping[int, Sighting], by: int, dead_after: float, hang_timeout: float = math.inf
) -> Diagnosis | None:
    """Find the ranks that keep the job from going on, or None while nothing is wrong.

    An error that a rank reported comes first, then ranks that fell silent, then a job that stands still: there
    the ranks that are furthest behind keep the others waiting.

    Args:
        seen: what the judge knows, by rank.
        by: the judge's rank.
        dead_after: seconds of silence after which a rank is gone.
        hang_timeout: seconds without any rank entering a phase after which the job hangs.
    """
    running = {rank: s.beat for rank, s in seen.items() if s.runs}
    failed = {r: s.beat for r, s in seen.items() if s.beat and s.beat.state in ("failed", "refused")}
    if failed:
        text = _several([f"{name(r, b)} ended {b.where}: {b.error}" for r, b in failed.items()])
        refused = all(b.state == "refused" for b in failed.values())
        own = [b for b in failed.values() if b.state == "failed"]  # what is refused is no fault of who says so
        return Diagnosis(text, by, patient=refused, hosts=_hosts(own))
    gone = [rank for rank in running if seen[rank].silent > dead_after]
    if gone:
        text = _several([f"{name(r, running[r])} is gone: {_silence(seen[r])}" for r in gone])
        return Diagnosis(text, by, gone=tuple(gone), hosts=_hosts(running[r] for r in gone))
    moving = [b is None or b.step == 0 or seen[r].still <= hang_timeout for r, b in running.items()]
    return _hang({r: b for r, b in running.items() if b}, by, hang_timeout) if running and not any(moving) else None


def name(rank: int, beat: Beat | None) -> str:
    """``rank 3 (host n7, pid 123)``."""
    return f"rank {rank} (host {beat.host}, pid {beat.pid})" if beat else f"rank {rank}"


def _silence(sighting: Sighting) -> str:
    if sighting.beat is None:
        return f"not one sign of it in {sighting.silent:.0f} s"
    return f"no sign of it for {sighting.silent:.0f} s, last seen {sighting.beat.where}"


def _hang(running: dict[int, Beat], by: int, hang_timeout: float) -> Diagnosis:
    least = min(beat.place for beat in running.values())
    behind = {rank: beat for rank, beat in running.items() if beat.place == least}
    stands = f"no rank has moved for {hang_timeout:.0f} s"
    if len(behind) == len(running) > 1:
        text = f"{stands}: all {len(running)} stand {running[min(running)].where}, so it is a collective that hangs"
        return Diagnosis(text, by, dumps=(by,))
    named = _several([f"{name(r, b)} {b.where}" for r, b in behind.items()])
    text = f"{stands}; furthest behind: {named}"
    return Diagnosis(text, by, dumps=tuple(behind)[:_NAMED], hosts=_hosts(behind.values()))


def _hosts(beats: Iterable[Beat | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(beat.host for beat in beats if beat))


def _several(ranks: list[str]) -> str:
    more = f"; and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return "; ".join(ranks[:_NAMED]) + more
