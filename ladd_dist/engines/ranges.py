"""Which range of a flattened tensor a rank holds: the arithmetic that engines, checkpoints and forecasts share.

The ranges of all ranks tile the tensor in rank order. Where it does not divide evenly, the last ranks hold less, or
nothing, and pad what they store to the size of the others' shards.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


WHOLE_BLOCKS = 3
"""Blocks of a network that ZeRO-3 may hold whole at once: what runs, what comes next, what is soon used again."""


@dataclass(frozen=True)
class Range:
    """``[offset, offset + held)`` of a flattened tensor.

    Attributes:
        stored: elements that the rank keeps for it, padding included.
        gathered: elements of the tensor as it is gathered from all ranks, with everyone's padding.
    """

    offset: int
    held: int
    stored: int
    gathered: int


Layout = Callable[["torch.Size"], Range]
"""What one rank holds of a tensor of the given shape."""


def whole(shape: "torch.Size") -> Range:
    """The whole tensor, on every rank."""
    return Range(0, shape.numel(), shape.numel(), shape.numel())


def rows(shape: "torch.Size", size: int, rank: int) -> Range:
    """FSDP2's ``Shard(0)``: each of ``size`` ranks has ``ceil(rows / size)`` rows."""
    return _share(shape[0], shape[1:].numel(), size, rank)


def elements(shape: "torch.Size", size: int, rank: int) -> Range:
    """ZeRO-3's partitions: each of ``size`` ranks has ``ceil(elements / size)`` of the flattened tensor."""
    return _share(shape.numel(), 1, size, rank)


def _share(count: int, width: int, size: int, rank: int) -> Range:
    each = -(-count // size)
    first = min(rank * each, count)
    return Range(first * width, min(each, count - first) * width, each * width, each * size * width)


WATCHED = 64
"""A run watches how one weight in so many moves: a copy of all would cost as much memory as the average does."""


def watched(offset: int, held: int) -> range:
    """Which of the elements ``[offset, offset + held)`` of a flattened tensor, counted from there.

    They are the same ones of the whole tensor, whatever the ranks.
    """
    return range(-offset % WATCHED, held, WATCHED)


def gathered_limit(shapes: Iterable["torch.Size"]) -> int:
    """Elements up to which ZeRO-3 keeps a parameter gathered between passes: biases and norm weights only."""
    return max((shape.numel() for shape in shapes if len(shape) == 1), default=0) + 1
