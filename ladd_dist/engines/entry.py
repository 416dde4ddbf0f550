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
Handling = Literal["none", "casts", "blocks", "tensors"]
MemoryKind = Literal["device", "host"]
"""The memory of the device that a rank computes on, and the host's; in a run on the CPU both are the same."""


@dataclass(frozen=True)
class Residency:
    """In which memory an engine keeps its state between iterations, and what a rank keeps beside its `Range`s.

    Attributes:
        masters: the memory of fp32 master weights, gradients, AdamW's moments and, unless ``train.ema_device=cpu``,
            the moving average.
        weights: the memory of parameters in the compute precision.
        gradient_copies: how many fp32 buffers hold each gradient at the end of the backward pass.
        copies_weights: whether trained parameters are also kept in the compute precision.
        pads_moments: whether moments are padded to equal shards, as masters are.
        keeps_gathered: whether biases and norm weights stay whole on every rank between passes.
        fp32_buffers: whether a sharded frozen network has its buffers in fp32.
        keeps_inputs: whether linear layers keep their inputs for a backward pass even where their weights are frozen.
        handling: what each pass does with weights and gradients: ``casts`` those that are trained, block by block;
            gathers ``blocks``, in one buffer that weights are copied out of, and reduces gradients in another; or
            does so with ``tensors``, one by one.
        keeps_gradients: whether gradients' memory is there all the time, and with it a buffer for one block's on
            their way.
        whole_blocks: of how many blocks of each sharded network weights stay whole from pass to pass, and with them
            those outside of blocks.
    """

    masters: MemoryKind = "device"
    weights: MemoryKind = "device"
    gradient_copies: int = 1
    copies_weights: bool = False
    pads_moments: bool = False
    keeps_gathered: bool = False
    fp32_buffers: bool = False
    keeps_inputs: bool = False
    handling: Handling = "none"
    keeps_gradients: bool = False
    whole_blocks: int = 0


def _anything(*_: object) -> None:
    """Accept every configuration."""


def _plain(config: Config) -> Residency:
    return Residency()


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    Attributes:
        build: builds the trained network under the engine, see `Engine`.
        place_frozen: builds a frozen network in shards, for ``teacher.placement=shard``.
        launcher: what starts its ranks; ``python`` is one process without a process group.
        layout: ``layout(config, size, rank)`` is a function from a tensor's shape to the `Range` of the flattened
            tensor that rank ``rank`` out of ``size`` holds.
        compiles: whether ``compile=auto`` may compile its networks; asked for outright, ``check`` decides.
        residency: what the memory formula has to know beside the layout.
        section: the section of the configuration that this engine alone reads.
        check: refuses settings with which it cannot run, in one line, before anything is started.
        check_ranks: refuses a number of ranks.
    """

    build: Callable[[Config, "Blueprint", "World"], "Engine"]
    place_frozen: Callable[[Config, "Blueprint", "World"], "nn.Module"]
    launcher: Launcher
    layout: Callable[[Config, int, int], Layout]
    compiles: bool = True
    residency: Callable[[Config], Residency] = _plain
    section: str | None = None
    check: Callable[[Config], None] = _anything
    check_ranks: Callable[[Config, int], None] = _anything
