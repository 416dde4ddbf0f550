"""Ranks that stay: one process group serves many calls, so that a test costs its own work and no start."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from launch import join, start_ranks

ENGINES: dict[str, list[str]] = {
    "local": [],
    "fsdp2": ["engine=fsdp2"],
    "hsdp": ["engine=fsdp2", "fsdp2.replicas=2"],
    "zero3": ["engine=zero3"],
    "zero3 offload=optimizer": ["engine=zero3", "zero3.offload=optimizer"],
    "zero3 offload=all": ["engine=zero3", "zero3.offload=all"],
}
"""Every engine and placement of its state, by name, as overrides."""


class Ranks:
    """A gloo group of ``size`` processes that run functions on demand, and are replaced after one has failed."""

    def __init__(self, size: int, **options: Any) -> None:
        """`options` are those of `start_ranks`."""
        self._size, self._options = size, options
        self._start()

    def _start(self) -> None:
        pairs = [multiprocessing.Pipe() for _ in range(self._size)]
        self._ends = [ours for ours, _ in pairs]
        self._processes = start_ranks(_serve, [theirs for _, theirs in pairs], size=self._size, **self._options)

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = 600) -> list[Any]:
        """Run ``function(world, *args)`` on every rank and return the picklable results, in rank order.

        Args:
            function: importable by its module's name, like its arguments.
            timeout: seconds after which the ranks are killed and the test fails.
        """
        if not all(process.is_alive() for process in self._processes):
            self._start()
        for end in self._ends:
            end.send((function, args))
        try:
            return self._answers(time.monotonic() + timeout)
        except BaseException:
            self._kill()
            raise

    def _answers(self, deadline: float) -> list[Any]:
        results: dict[Any, Any] = {}
        while waiting := [end for end in self._ends if end not in results]:
            ends = [*waiting, *(process.sentinel for process in self._processes)]
            ready = wait(ends, max(0.0, deadline - time.monotonic()))
            assert ready, f"{len(waiting)} of {self._size} ranks hung"
            for end in ready:
                assert isinstance(end, Connection), f"ranks died: {[p.exitcode for p in self._processes]}"
                trace, results[end] = end.recv()
                assert trace is None, trace
        return [results[end] for end in self._ends]

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def close(self) -> None:
        """Let the processes end."""
        for end, process in zip(self._ends, self._processes, strict=True):
            if process.is_alive():
                end.send(None)
        join(self._processes)


_GROUPS: dict[int, Ranks] = {}


def ranks(size: int) -> Ranks:
    """The group of that size which the tests of one file share."""
    if size not in _GROUPS:
        _GROUPS[size] = Ranks(size)
    return _GROUPS[size]


def close_ranks() -> None:
    """Let all of them end: each process group that a test has made keeps a thread that wakes 100 times a second."""
    while _GROUPS:
        _GROUPS.popitem()[1].close()


def _serve(world: Any, ends: list[Connection]) -> None:
    end = ends[world.rank]
    while (call := end.recv()) is not None:
        function, args = call
        try:
            end.send((None, function(world, *args)))
        except BaseException:
            end.send((traceback.format_exc(), None))
            raise
