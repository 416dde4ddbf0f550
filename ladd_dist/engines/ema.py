"""Exponential moving average of the student, sharded exactly as the engine shards the student."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.engines.base import Engine, Shard
from ladd_dist.engines.entry import MemoryKind
from ladd_dist.engines.registry import engine_entry


class Ema:
    """``ema <- decay * ema + (1 - decay) * weights``, fp32, on this rank's shards.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that short runs are not
    held back by their initial weights.

    An average in host memory, which takes a second or two where 8B parameters have to come there, moves in a thread
    of its own, beside the passes of the next iteration, and has arrived before the weights change again.

    Args:
        on_host: keep the average in host memory; each update then copies the weights there, if they are not.
    """

    @classmethod
    def of(cls, student: Engine, config: Config) -> "Ema":
        """As a run has it."""
        return cls(student, config.train.ema_decay, average_place(config) == "host")

    def __init__(self, student: Engine, decay: float, on_host: bool) -> None:
        self._student = student
        self._decay, self._on_host = decay, on_host
        self._weights = [shard.local for shard in student.shards().values()]
        self._average = [w.clone() for w in (in_host_memory(self._weights) if on_host else self._weights)]
        device = self._weights[0].device
        self._stream = torch.cuda.Stream(device) if on_host and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="average", initializer=_enter, initargs=(device,))
        self._moving: Future[None] | None = None
        student.before_update = self.wait

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move towards the current weights, ``updates`` counting the calls before this one; on the host, begin to."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        if not self._on_host:
            torch._foreach_lerp_(self._average, self._weights, 1 - decay)
            return
        self.wait()
        if self._stream is not None:  # which does not wait for what the passes will queue
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._moving = self._thread.submit(self._move, 1 - decay)

    def wait(self) -> None:
        """Wait until the average has moved."""
        moving, self._moving = self._moving, None
        if moving is not None:
            moving.result()

    @torch.no_grad()
    def _move(self, share: float) -> None:
        with torch.cuda.stream(self._stream):  # none, for weights in host memory
            for average, weights in zip(self._average, in_host_memory(self._weights), strict=True):
                average.lerp_(weights, share)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Let the student run with the averaged weights inside the block."""
        self.wait()
        self._swap()
        self._student.publish()
        try:
            yield
        finally:
            self._swap()
        self._student.publish()  # not after an exception: it waits for all ranks, and others may have met none

    def _swap(self) -> None:
        for weights, average in zip(self._weights, self._average, strict=True):
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def shards(self) -> dict[str, Shard]:
        """The average, in the same ranges as the student's weights."""
        self.wait()
        student = self._student.shards()
        averages: list[Tensor] = self._average
        return {
            name: Shard(shard.shape, shard.offset, average)
            for (name, shard), average in zip(student.items(), averages, strict=True)
        }


def average_place(config: Config) -> MemoryKind:
    """Where a run's average is: with the masters, if not asked otherwise."""
    return "host" if config.train.ema_device == "cpu" else engine_entry(config.engine).residency(config).masters


def _enter(device: torch.device) -> None:
    """Begin a thread: its current GPU would be the first one, where every rank would get a context."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def in_host_memory(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each tensor in host memory, good until the next is asked for, which is on its way meanwhile.

    Two page-locked buffers of the largest one serve all: plain copies would be made through such a buffer of the
    driver's, into as much new memory as all tensors take. Tensors that are there already are given as they are.
    """
    if not any(t.is_cuda for t in tensors):
        yield from tensors
        return
    largest = max(tensors, key=Tensor.numel)
    buffers = largest.new_empty((2, largest.numel()), device="cpu", pin_memory=True)
    arrived = [torch.cuda.Event(), torch.cuda.Event()]

    def send(index: int) -> Tensor:
        copy = buffers[index % 2, : tensors[index].numel()].view_as(tensors[index])
        copy.copy_(tensors[index], non_blocking=True)
        arrived[index % 2].record()
        return copy

    coming = send(0)
    for index in range(len(tensors)):
        here = coming
        if index + 1 < len(tensors):
            coming = send(index + 1)
        arrived[index % 2].synchronize()
        yield here
