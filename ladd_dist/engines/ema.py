"""Exponential moving average of the student, sharded exactly as the engine shards the student."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ladd_dist.engines.base import Engine, Shard


class Ema:
    """``ema <- decay * ema + (1 - decay) * weights``, fp32, on this rank's shards.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that short runs are not
    held back by their initial weights.

    Args:
        on_host: keep the average in host memory; each update then copies the weights there.
    """

    def __init__(self, student: Engine, decay: float, on_host: bool) -> None:
        self._student = student
        self._decay, self._on_host = decay, on_host
        self._weights = [shard.local for shard in student.shards().values()]
        self._average = [w.to("cpu" if on_host else w.device, copy=True) for w in self._weights]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move towards the current weights, ``updates`` counting the calls before this one."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        weights = [w.cpu() for w in self._weights] if self._on_host else self._weights
        torch._foreach_lerp_(self._average, weights, 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Let the student run with the averaged weights inside the block."""
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
        student = self._student.shards()
        averages: list[Tensor] = self._average
        return {
            name: Shard(shard.shape, shard.offset, average)
            for (name, shard), average in zip(student.items(), averages, strict=True)
        }
