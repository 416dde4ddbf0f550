"""All ranks at once: do all-reduce and all-gather give the right numbers, and how fast; and what their clocks say."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ladd_dist.distributed.hanging import in_thread
from ladd_dist.distributed.world import World
from ladd_dist.preflight.clocks import Visit, visits
from ladd_dist.preflight.findings import Finding, RankPlace, and_more, hosts_of

LIMIT = 90.0
"""Seconds for all of it; NCCL connects all ranks in it, gloo the CPUs' own group."""
_REPEATS = 3
_NUMBERS = {"cuda": 16 << 20, "cpu": 1 << 19}
"""fp32 numbers of a whole tensor."""
_CYCLE = 251


@dataclass(frozen=True)
class Collective:
    """Seconds for one, and whether every number was right."""

    name: str
    seconds: float
    right: bool


@dataclass(frozen=True)
class Together:
    """What a rank saw of all collectives, or why it did not get to their end."""

    collectives: tuple[Collective, ...] = ()
    visits: tuple[Visit, ...] = ()
    problem: str = ""


def measure(world: World, group: Any) -> Together:
    """This rank's; takes `LIMIT` at most, and leaves a thread if it hangs."""
    future = in_thread(lambda: _all(world, group))
    wait([future], LIMIT)
    if not future.done():
        return Together(problem=f"no end in {LIMIT:.0f} s")
    error = future.exception()
    return Together(problem=" ".join(str(error).split())[:200]) if error else future.result()


def _all(world: World, group: Any) -> Together:
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    part = max(1, _NUMBERS[world.device.type] // world.size)
    aside = world.aside()  # clocks by the CPUs' own connections, which then are known to work, too
    found = Together((_all_reduce(world, part, group), _all_gather(world, part, group)), visits(aside))
    if aside.group is not None:
        dist.destroy_process_group(aside.group)
    return found


def _pattern(rank: int, world: World, part: int) -> Tensor:
    """Whole numbers, which add up exactly in fp32 for up to 30,000 ranks."""
    return (torch.arange(part, device=world.device, dtype=torch.int32) % _CYCLE + rank % _CYCLE).float()


def _all_reduce(world: World, part: int, group: Any) -> Collective:
    mine = _pattern(world.rank, world, part * world.size)
    total = mine.clone()
    seconds = _best(world, lambda: dist.all_reduce(total.copy_(mine), group=group))
    ranks = sum(rank % _CYCLE for rank in range(world.size))
    expected = _pattern(0, world, part * world.size) * world.size + ranks
    return Collective("all-reduce", seconds, torch.equal(total, expected))


def _all_gather(world: World, part: int, group: Any) -> Collective:
    mine = _pattern(world.rank, world, part)
    whole = torch.empty(part * world.size, device=world.device)
    seconds = _best(world, lambda: dist.all_gather_into_tensor(whole, mine, group=group))
    right = all(torch.equal(its, _pattern(rank, world, part)) for rank, its in enumerate(whole.split(part)))
    return Collective("all-gather", seconds, right)


def _best(world: World, act: Callable[[], object]) -> float:
    """Seconds; the first time connects, and does not count."""
    found = []
    for _ in range(1 + _REPEATS):
        begin = time.perf_counter()
        act()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def judge(ranks: Sequence[Together], places: Sequence[RankPlace], device: str) -> list[Finding]:
    """Whether all came to the end with the right numbers; speeds as nccl-tests reckons them (busbw)."""
    if stuck := [place for place in places if ranks[place.rank].problem]:
        who, reason = and_more(str(stuck[0]), len(stuck)), ranks[stuck[0].rank].problem
        remedy = "neighbours reach each other, so see with NCCL_DEBUG=INFO where it stands"
        return [Finding("collectives", "failed", f"collectives of all ranks fail on {who} ({reason}): {remedy}")]
    return [_collective([rank.collectives[number] for rank in ranks], places, device) for number in range(2)]


def _collective(ranks: Sequence[Collective], places: Sequence[RankPlace], device: str) -> Finding:
    name = ranks[0].name
    if wrong := [place for place in places if not ranks[place.rank].right]:
        who = and_more(str(wrong[0]), len(wrong))
        text = f"{name} gives wrong numbers on {who}: take its node out of the job"
        return Finding(name, "failed", text, hosts_of(wrong, places))
    slowest, size = max(rank.seconds for rank in ranks), len(ranks)
    sent = (size - 1) / size * (2 if name == "all-reduce" else 1)
    speed = 4 * _NUMBERS[device] * sent / max(slowest, 1e-9) / 1e9
    return Finding(name, "ok", f"right on every rank, {speed:.3g} GB/s")
