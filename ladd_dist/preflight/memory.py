"""Does it fit: the formula of `planning` against free memory, and loader processes' batches against /dev/shm."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ladd_dist.distributed.world import World
from ladd_dist.preflight.findings import Finding, RankPlace, hosts_of

SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies
_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Needs:
    """Bytes that a rank will hold at the least; 0 where nobody knows."""

    device: int = 0
    host: int = 0
    shared: int = 0


@dataclass(frozen=True)
class Memory:
    """What a rank needs, and what is free where it runs; a CPU's device memory is the host's."""

    needs: Needs
    device_free: int
    device_total: int
    host_free: int
    shared_free: int


def memory(needs: Needs, world: World) -> Memory:
    """This rank's."""
    free, total = torch.cuda.mem_get_info(world.device) if world.device.type == "cuda" else (0, 0)
    return Memory(needs, free, total, _host_free(), _free(SHM))


def _free(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _host_free() -> int:
    """As the kernel reckons it, or the whole limit of the job or the container on this node if that is less."""
    lines = dict(line.split(":") for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
    return min([int(lines["MemAvailable"].split()[0]) * 1024, *_limits()])


def _limits() -> list[int]:
    """Of this process's control groups from its own up to the root.

    Slurm limits the group of a job, far above its processes. A container has its own limit at the root, also where
    the group is called as the node knows it and is not there.
    """
    found = []
    for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines() if _OWN_GROUPS.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"  # of version 1
        else:
            continue
        own = Path(path).relative_to("/")
        files = [root / group / name for group in (own, *own.parents)]
        found += [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
    return [int(limit) for limit in found if limit != "max"]


def judge(ranks: Sequence[Memory], places: Sequence[RankPlace], workers: int) -> list[Finding]:
    """Device memory by rank, host and shared memory by node."""
    found = [_device(ranks, places)] if ranks[0].device_total else []
    nodes = _by_node(places)
    host = {node: sum(ranks[place.rank].needs.host for place in there) for node, there in nodes.items()}
    shared = {node: sum(ranks[p.rank].needs.shared for p in there) for node, there in nodes.items()}
    host_free = {node: ranks[there[0].rank].host_free for node, there in nodes.items()}
    shared_free = {node: ranks[there[0].rank].shared_free for node, there in nodes.items()}
    more = "take more nodes, fewer ranks on each, or ask for more of a node's memory (memory in the cluster file)"
    fewer = f"raise its limit (docker --shm-size, a memory volume), or lower data.workers={workers}"
    return [
        *found,
        _node("host memory", host, host_free, nodes, more),
        _node(str(SHM), shared, shared_free, nodes, fewer),
    ]


def _by_node(places: Sequence[RankPlace]) -> dict[int, list[RankPlace]]:
    nodes: dict[int, list[RankPlace]] = defaultdict(list)
    for place in places:
        nodes[place.node].append(place)
    return nodes


def _device(ranks: Sequence[Memory], places: Sequence[RankPlace]) -> Finding:
    worst = min(places, key=lambda place: ranks[place.rank].device_free - ranks[place.rank].needs.device)
    rank = ranks[worst.rank]
    text = f"{_gb(rank.needs.device)} of state, {_gb(rank.device_free)} of {_gb(rank.device_total)} free on {worst}"
    if rank.needs.device <= rank.device_free:
        return Finding("GPU memory", "ok", text)
    short = [place for place in places if ranks[place.rank].needs.device > ranks[place.rank].device_free]
    text = f"{text}: end what else runs there, take more ranks, or shard the teacher"
    return Finding("GPU memory", "failed", text, hosts_of(short, places))


def _node(
    check: str, needed: Mapping[int, int], free: Mapping[int, int], nodes: Mapping[int, list[RankPlace]], remedy: str
) -> Finding:
    worst = min(needed, key=lambda node: free[node] - needed[node])
    text = f"{_gb(needed[worst])} of {check} needed, {_gb(free[worst])} free on host {nodes[worst][0].host}"
    if needed[worst] <= free[worst]:
        return Finding(check, "ok", text)
    return Finding(check, "failed", f"{text}: {remedy}")


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
