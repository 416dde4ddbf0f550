"""What the program asks of an engine by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ladd_dist.config import Config
from ladd_dist.engines.ranges import Layout

if TYPE_CHECKING:  # settings are checked before torch is imported, which takes seconds
    from torch import nn

    from ladd_dist.distributed.world import World
    from ladd_dist.engines.base import Engine
    from ladd_dist.engines.blueprint import Blueprint

Launcher = Literal["python", "torchrun", "deepspeed"]
MemoryKind = Literal["device", "host"]


@dataclass(frozen=True)
class Residency:
    """Where an engine keeps its state between iterations, and what it keeps beside each rank's range of it.

    Attributes:
        masters: memory of masters, gradients, moments and average.
        weights: memory of what is kept in compute precision.
        gradient_copies: buffers that hold a gradient at the end of the backward pass.
        copies_weights: whether trained parameters are kept in compute precision, too.
        pads_moments: whether moments are padded as masters are.
        keeps_gathered: whether biases and norm weights stay gathered between passes.
        fp32_buffers: whether a sharded frozen network has its buffers in fp32.
    """

    masters: MemoryKind = "device"
    weights: MemoryKind = "device"
    gradient_copies: int = 1
    copies_weights: bool = False
    pads_moments: bool = False
    keeps_gathered: bool = False
    fp32_buffers: bool = False


def _anything(*_: object) -> None:
    """Accept every configuration."""


def _plain(config: Config) -> Residency:
    return Residency()


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    Attributes:
        build: the trained network under the engine, see `Engine`.
        place_frozen: a frozen network with ``teacher.placement=shard``.
        launcher: what starts its ranks; ``python`` is one process without a process group.
        layout: what rank ``rank`` of ``size`` holds of a tensor: ``layout(config, size, rank)(shape)``.
        residency: what the memory formula has to know beside the layout.
        section: the section of the configuration that this engine alone reads.
        check: refuses settings with which it cannot run, in one line, before anything is started.
        check_ranks: refuses a number of ranks.
    """

    build: Callable[[Config, "Blueprint", "World"], "Engine"]
    place_frozen: Callable[[Config, "Blueprint", "World"], "nn.Module"]
    launcher: Launcher
    layout: Callable[[Config, int, int], Layout]
    residency: Callable[[Config], Residency] = _plain
    section: str | None = None
    check: Callable[[Config], None] = _anything
    check_ranks: Callable[[Config, int], None] = _anything
