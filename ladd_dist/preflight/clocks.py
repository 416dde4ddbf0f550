"""How far apart the nodes' clocks are, for certain.

No rank leaves an all-reduce before every rank has entered it. So between entering and leaving there is one moment on
every rank that is the same for all, and two clocks differ by no less than the gap between the two ranks' intervals. A
slow network makes the intervals longer and the answer less sharp, and never wrong.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from ladd_dist.distributed.world import World
from ladd_dist.preflight.findings import Finding, RankPlace

_VISITS = 5
_ODD, _WRONG = 1.0, 300.0
"""Seconds. From the first on, lines of two nodes' logs cannot be put in order by their times. At the second, Kerberos
(``clockskew``, krb5.conf(5)) and MUNGE (munge(7), five minutes) stop to believe the node; S3 does at 15 minutes."""


class Visit(NamedTuple):
    """When this rank's clock said that it entered an all-reduce and left it."""

    entered: float
    left: float


class Apart(NamedTuple):
    """Seconds by which a clock is ahead of another, at least and at most."""

    least: float
    most: float

    @property
    def certain(self) -> float:
        """Seconds by which they differ, at the least."""
        return max(0.0, self.least, -self.most)


def visits(world: World) -> tuple[Visit, ...]:
    """This rank's, of a group on CPUs. The first one waits for those who come late."""
    return tuple(_visit(world) for _ in range(_VISITS)) if world.size > 1 else ()


def _visit(world: World) -> Visit:
    entered = _now()
    dist.all_reduce(torch.zeros(1), group=world.group)
    return Visit(entered, _now())


def _now() -> float:
    return time.time()


def apart(clock: Sequence[Visit], other: Sequence[Visit]) -> Apart:
    """How far a clock is ahead of the other, by what both saw of the same all-reduces."""
    pairs = list(zip(clock, other, strict=True))
    return Apart(max(a.entered - b.left for a, b in pairs), min(a.left - b.entered for a, b in pairs))


def judge(ranks: Sequence[Sequence[Visit]], places: Sequence[RankPlace]) -> list[Finding]:
    """Clocks against rank 0's."""
    if len(ranks) == 1:
        return []
    found = [apart(rank, ranks[0]) for rank in ranks]
    worst = max(places[1:], key=lambda place: found[place.rank].certain)
    seconds = found[worst.rank].certain
    if seconds < _ODD:
        widest = max(each.most - each.least for each in found[1:])
        return [Finding("clocks", "ok", f"no two differ for certain, measured to {1000 * widest / 2:.2g} ms")]
    which = "ahead of" if found[worst.rank].least > 0 else "behind"
    text = f"the clock of {worst} is {seconds:.1f} s {which} that of {places[0]}: set both by NTP"
    return [Finding("clocks", "failed" if seconds >= _WRONG else "warning", text, (worst.host,))]
