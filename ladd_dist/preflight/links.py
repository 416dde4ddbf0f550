"""Links between neighbours, all of them in a handful of rounds: does anything get through, and how fast.

Ranks of a node form a ring, and so do the ranks of one number on all nodes, which on a cluster share a rail. A ring's
links are measured every second one at a time, so that nobody has two partners at once: six rounds at most, however
many ranks there are. A slow node has two slow links, a slow cable is one.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ladd_dist.distributed.hanging import in_thread
from ladd_dist.distributed.world import World
from ladd_dist.preflight.findings import Finding, RankPlace, and_more, hosts_of

LIMIT = 60.0
"""Seconds for a round, NCCL's first start among them; a link that is slower than .1 MB/s is as good as dead."""
_REPEATS = 3
_BYTES = {"cuda": 64 << 20, "cpu": 1 << 20}
_SLOW = {"cuda": 0.7, "cpu": 0.25}
"""Part of the usual speed below which a link stands out. A GPU's link that lost one of two lanes has half; on CPUs
ranks take turns on the cores."""


class Pair(NamedTuple):
    """Two ranks that measure the link between them; ``kind`` tells links that ought to be alike."""

    kind: str
    first: int
    second: int


@dataclass(frozen=True)
class Link:
    """What one end of a link saw: seconds for a message there and back, or why there are none."""

    seconds: float | None
    problem: str = ""


def rounds(places: Sequence[RankPlace]) -> list[list[Pair]]:
    """Who measures with whom, round by round; nobody twice in one."""
    nodes: dict[int, list[int]] = defaultdict(list)
    rails: dict[int, list[int]] = defaultdict(list)
    for place in places:
        rails[len(nodes[place.node])].append(place.rank)
        nodes[place.node].append(place.rank)
    found = _rings("within a node", list(nodes.values())) + _rings("between nodes", list(rails.values()))
    return [pairs for pairs in found if pairs]


def _rings(kind: str, rings: list[list[int]]) -> list[list[Pair]]:
    found: list[list[Pair]] = [[], [], []]
    for ring in rings:
        closed = [*ring, ring[0]] if len(ring) > 2 else ring
        for number, (first, second) in enumerate(pairwise(closed)):
            last_of_odd = number == len(ring) - 1 and number % 2 == 0
            found[2 if last_of_odd else number % 2].append(Pair(kind, first, second))
    return found


def measure(pairs: Sequence[Pair], world: World, group: Any) -> Link | None:
    """This rank's link of a round; None if it has none. Takes `LIMIT` at most, and leaves a thread if it hangs."""
    mine = next((pair for pair in pairs if world.rank in pair[1:]), None)
    if mine is None:
        return None
    other = mine.second if world.rank == mine.first else mine.first
    future = in_thread(lambda: _there_and_back(world, other, group))
    wait([future], LIMIT)
    if not future.done():
        return Link(None, f"nothing in {LIMIT:.0f} s")
    error = future.exception()
    return Link(None, " ".join(str(error).split())[:200]) if error else Link(future.result())


def _there_and_back(world: World, other: int, group: Any) -> float:
    """Seconds, the best of some."""
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    message = torch.zeros(_BYTES[world.device.type], dtype=torch.uint8, device=world.device)
    _exchange(message[: 1 << 16], world, other, group)
    return min(_timed(message, world, other, group) for _ in range(_REPEATS))


def _timed(message: Tensor, world: World, other: int, group: Any) -> float:
    begin = time.perf_counter()
    _exchange(message, world, other, group)
    return time.perf_counter() - begin


def _exchange(message: Tensor, world: World, other: int, group: Any) -> None:
    """One direction after the other: NCCL would wait for ever where both ends begin by sending."""
    for sender in sorted((world.rank, other)):
        if sender == world.rank:
            dist.send(message, other, group=group)
        else:
            dist.recv(message, other, group=group)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def judge_round(pairs: Sequence[Pair], ranks: Sequence[Link | None], places: Sequence[RankPlace]) -> Finding | None:
    """Pairs between which nothing gets through; None if there are none."""
    dead = [pair for pair in pairs if any(_of(ranks[rank]).seconds is None for rank in pair[1:])]
    if not dead:
        return None
    pair = dead[0]
    reason = next(_of(ranks[rank]).problem for rank in pair[1:] if _of(ranks[rank]).seconds is None)
    who = and_more(f"{places[pair.first]} and {places[pair.second]}", len(dead))
    remedy = "look at the network between them, and at NCCL_SOCKET_IFNAME, NCCL_IB_HCA or GLOO_SOCKET_IFNAME"
    text = f"no way {pair.kind}: {who} cannot reach each other ({reason}): {remedy}"
    return Finding("links", "failed", text, hosts_of([places[rank] for rank in pair[1:]], places))


def _of(link: Link | None) -> Link:
    assert link is not None  # both ends of a pair measure
    return link


def speeds(pairs: Sequence[Pair], ranks: Sequence[Link | None], device: str) -> dict[Pair, float]:
    """GB/s of the links of a round, both directions after each other, by the end that saw it slower."""
    slower = {pair: max(_of(ranks[rank]).seconds or 0.0 for rank in pair[1:]) for pair in pairs}
    return {pair: 2 * _BYTES[device] / 1e9 / seconds for pair, seconds in slower.items()}


def judge_speeds(found: Mapping[Pair, float], places: Sequence[RankPlace], device: str) -> Finding:
    """Links that are much slower than others of their kind.

    Args:
        found: GB/s.
        device: what ranks compute on, ``cuda`` or ``cpu``.
    """
    usual = {kind: _usual([found[pair] for pair in found if pair.kind == kind]) for kind in _kinds(found)}
    normal = ", ".join(f"{speed:.3g} GB/s {kind}" for kind, speed in usual.items())
    slow = sorted((pair for pair in found if found[pair] < _SLOW[device] * usual[pair.kind]), key=lambda p: found[p])
    if not slow:
        return Finding("links", "ok", normal)
    pair = slow[0]
    text = f"{found[pair]:.3g} GB/s {pair.kind}, where {usual[pair.kind]:.3g} are usual"
    who = _culprit(pair, slow, found, places)
    return Finding("links", "warning", f"{text}: {who}: look at cable, adapter and their counters of errors")


def _usual(values: Sequence[float]) -> float:
    """What a quarter of them reach: a slow node of three slows two links of three."""
    return sorted(values)[3 * len(values) // 4]


def _kinds(found: Mapping[Pair, float]) -> list[str]:
    return list(dict.fromkeys(pair.kind for pair in found))


def _culprit(pair: Pair, slow: Sequence[Pair], found: Mapping[Pair, float], places: Sequence[RankPlace]) -> str:
    """The rank all of whose links of this kind are slow, if only one end has several and all of them are."""

    def all_slow(rank: int) -> bool:
        its = [other for other in found if other.kind == pair.kind and rank in other[1:]]
        return len(its) > 1 and set(its) <= set(slow)

    guilty = [rank for rank in pair[1:] if all_slow(rank)]
    if len(guilty) == 1:
        return f"all links of {places[guilty[0]]}"
    return and_more(f"the link of {places[pair.first]} and {places[pair.second]}", len(slow))
