"""The process group as a value: who am I, on which device, and the few collectives the trainer needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ladd_dist.distributed.allocator import keep_freed
from ladd_dist.distributed.connection import connect
from ladd_dist.distributed.rendezvous import fresh
from ladd_dist.distributed.tasks import group_variables
from ladd_dist.errors import LaddError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one to start, and the least that a collective waits for one, before the job fails."""
_PATIENCE = 2
"""Times `train.hang_timeout` that a collective waits: the watchdog comes first, and says for whom."""


class Position:
    """Which iteration and phase this rank is in; the watchdog sends it to the others.

    Every rank enters the same phases in the same order, so that positions tell who is behind.
    """

    def __init__(self) -> None:
        self.place: tuple[int, int, str] = (0, 0, "")
        """Iteration, phases entered in it, name of the newest; replaced as a whole, for another thread reads it."""
        self.saved = ""
        """The newest checkpoint."""

    def enter(self, iteration: int, phase: str) -> None:
        """Begin a phase, such as ``data``, of an iteration (counted from 1; 0 is the start of the run)."""
        before, count, _ = self.place
        self.place = (iteration, count + 1 if iteration == before else 1, phase)


@dataclass(frozen=True)
class World:
    """One process's place among all of them. ``size == 1`` works without a process group."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """Whose collectives these are; None means the default group's."""
    position: Position = field(default_factory=Position, compare=False, repr=False)
    store: dist.Store | None = field(default=None, compare=False, repr=False)
    """The key-value store of the process group, None without one."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs, reports and manifests."""
        return self.rank == 0

    def aside(self) -> "World":
        """The same ranks over a CPU group of their own, for another thread or for collectives off the GPU."""
        if self.size == 1:
            return self
        group: Any = dist.new_group(backend="gloo")
        return replace(self, device=torch.device("cpu"), group=group)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in one collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        dist.all_reduce(flat, group=self.group)
        flat /= self.size
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.detach().copy_(part.view_as(t))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite every rank's tensors with rank 0's."""
        if self.size > 1:
            for t in tensors:
                dist.broadcast(t.detach(), src=0, group=self.group)

    def gather(self, value: object) -> list[Any]:
        """Every rank's picklable value, in rank order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, act: Callable[[], T]) -> T:
        """Run a check on every rank; if it fails on one, it fails on all.

        Raises:
            LaddError: on all ranks, that of the first on which it failed.
        """
        results, problem = [], None
        try:
            results.append(act())
        except LaddError as error:
            problem = error
        if problems := [found for found in self.gather(problem) if found]:
            raise problems[0]
        return results[0]


def start(device: str = "auto", hang_timeout: float = 0.0) -> World:
    """Join the process group that torchrun, deepspeed, srun or mpirun described in the environment, if there is one.

    Args:
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        hang_timeout: seconds after which a watchdog ends a job that stands still; 0 where none watches.

    Raises:
        LaddError: if ``cuda`` is asked for and not there, or for one of several tasks that cannot join the others.
        PeerLost: if another rank is gone before all have met, or on every rank, naming two that cannot reach each
            other.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LaddError("device=cuda, but no GPU is visible: set device=auto or device=cpu")
    os.environ.update(group_variables(os.environ))
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cpu" or not torch.cuda.is_available():
        chosen, backend = torch.device("cpu"), "gloo"
        keep_freed()
    else:
        # Slurm may show each task its own GPU alone, which then is the first one.
        chosen, backend = torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0), "nccl"
        torch.cuda.set_device(chosen)
    # MosaicML Streaming finds the ranks of a node by this variable, which the deepspeed launcher calls LOCAL_SIZE.
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))
    store = None
    if "RANK" in os.environ and not dist.is_initialized():
        store = fresh(_meet(), rank, size, TIMEOUT)
        _join(backend, store, rank, size, max(TIMEOUT, timedelta(seconds=_PATIENCE * hang_timeout)))
    return World(rank, size, local_rank, chosen, store=store)


def _meet() -> dist.Store:
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    except dist.DistError as error:
        place = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise LaddError(
            f"no meeting of the ranks at {place} ({reason}): set both to rank 0's host and a free port"
        ) from None
    return store


def _join(backend: str, store: dist.Store, rank: int, size: int, patience: timedelta) -> None:
    """NCCL connects with its first collective, gloo at once."""

    def join(timeout: timedelta) -> None:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)

    store.set_timeout(patience)  # there ranks wait for what NCCL's first one writes
    # Also of the groups that engines make, to which neither a device mesh nor DeepSpeed lets a timeout through.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = patience
    if backend == "nccl":
        return join(patience)
    connect(join, dist.PrefixStore("connect", store), rank, size)
    dist.set_timeout(patience)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
