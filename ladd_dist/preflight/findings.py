"""What a check has found, and who is at fault, in words."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "failed"]


class Finding(NamedTuple):
    """A line of the table: what was looked at, and what was found on the rank for which it looks worst.

    ``hosts`` are the nodes at fault, where it is some nodes' own: on others the job could run.
    """

    check: str
    status: Status
    text: str
    hosts: tuple[str, ...] = ()


class RankPlace(NamedTuple):
    """Where a rank runs. Ranks of one node have the same number of it."""

    rank: int
    host: str
    node: int

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host})"


class OddOne(NamedTuple):
    """The first that has another value than most, and how many have."""

    rank: int
    ranks: int
    usual: int
    """One of those that have what most have."""


def odd_one(values: Sequence[Hashable]) -> OddOne | None:
    """Who differs from most; of several values that are as frequent, the first one's is taken for the usual one."""
    (most, _), *others = Counter(values).most_common()
    if not others:
        return None
    odd = [index for index, value in enumerate(values) if value != most]
    return OddOne(odd[0], len(odd), values.index(most))


def hosts_of(bad: Sequence[RankPlace], places: Sequence[RankPlace]) -> tuple[str, ...]:
    """The nodes of the ranks at fault; none if all ranks are, for then it is what they were told to do."""
    return tuple(dict.fromkeys(place.host for place in bad)) if len(bad) < len(places) else ()


def and_more(text: str, count: int) -> str:
    """Name one, and say how many there are."""
    return text if count == 1 else f"{text} and {count - 1} more"


def table(findings: Iterable[Finding]) -> list[str]:
    """Aligned lines of text."""
    rows = list(findings)
    width = max((len(row.check) for row in rows), default=0)
    return [f"{row.check:{width}}  {row.status:7}  {row.text}" for row in rows]


def failures(findings: Iterable[Finding]) -> list[str]:
    """What keeps the job from starting, a line each."""
    return [finding.text for finding in findings if finding.status == "failed"]
