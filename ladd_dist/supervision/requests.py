"""Requests to a running job: signals reach single processes, and all ranks act on them at the same iteration."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ladd_dist.distributed.world import World
from ladd_dist.supervision.signals import Signals, ignore_stop

_POLL = 0.5
"""Seconds between two looks of a rank that waits for the others."""


class Requests(NamedTuple):
    """What some rank asked for: to stop, to look at a checkpoint that could not be written, to profile."""

    stop: bool = False
    failed: bool = False
    profile: bool = False


class SharedStop:
    """Whether any rank was asked to stop, for ranks that do not work in step; each look is a message to the store."""

    def __init__(self, world: World, signals: Signals) -> None:
        self._store = dist.PrefixStore("stop", world.store) if world.store else None
        self._world, self._signals = world, signals

    def asked(self) -> bool:
        """Look, and tell the others what this rank was asked for; once true, it stays so."""
        if self._store is None:
            return self._signals.stop
        if self._signals.stop:
            self._store.set("asked", "yes")
        return self._store.check(["asked"])

    def agreed(self, check: Callable[[], object]) -> bool:
        """Wait until every rank has called this, and tell all of them alike whether one was asked to stop.

        Ranks may be hours apart, and in a collective whoever comes first would give up after `world.TIMEOUT`. So they
        look at the store meanwhile; a rank that never comes is for the watchdog to find.

        Args:
            check: called between looks; what it raises ends the wait.
        """
        if self._store is not None:
            come = self._store.add("come", 1)
            everyone = -(-come // self._world.size) * self._world.size  # a rank comes again only after all have come
            while self._store.add("come", 0) < everyone:
                check()
                self.asked()
                time.sleep(_POLL)
        return any(self._world.gather(self.asked()))


class RequestExchange:
    """Tells all ranks at the same iteration what any of them asked for in the iteration before.

    The all-reduce runs on the CPU while the next iteration computes, so neither the GPU nor the loop waits for it.
    """

    def __init__(self, world: World, signals: Signals) -> None:
        self._group, self._signals = world.aside().group, signals
        self._flags = torch.zeros(len(Requests._fields), dtype=torch.int32)
        self._work: Any = None

    def begin(self) -> Requests:
        """Exchange what was asked for before the first iteration, and wait for it."""
        self._post(Requests(stop=self._signals.stop))
        return self._outcome()

    def agree(self, failed: bool) -> Requests:
        """Exchange requests; to be called by every rank after every iteration.

        Args:
            failed: whether this rank's last checkpoint could not be written.

        Returns:
            What any rank had asked for at the call before this one (at this one, in a single process).
        """
        before = self._outcome()
        self._post(Requests(self._signals.stop, failed, self._signals.take_profile()))
        return self._outcome() if self._group is None else before

    def _post(self, asked: Requests) -> None:
        self._flags.copy_(torch.tensor(asked, dtype=torch.int32))
        if self._group is not None:
            self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _outcome(self) -> Requests:
        if self._work is not None:
            self._work.wait()
        agreed = Requests(*(bool(flag) for flag in self._flags))
        if agreed.stop:
            ignore_stop()  # another signal has nothing to add, and must not hit the process while it leaves
        return agreed
