"""The engines that come with the trainer. What one needs to be built is imported when it is."""

from functools import partial
from typing import TYPE_CHECKING

from ladd_dist.config import Config
from ladd_dist.engines import ranges
from ladd_dist.engines.entry import EngineEntry, Residency
from ladd_dist.engines.ranges import Layout
from ladd_dist.errors import LaddError

if TYPE_CHECKING:
    from torch import nn

    from ladd_dist.distributed.world import World
    from ladd_dist.engines.base import Engine
    from ladd_dist.engines.blueprint import Blueprint


def _build_local(config: Config, blueprint: "Blueprint", world: "World") -> "Engine":
    import torch

    from ladd_dist.engines.casting import cast_in_passes
    from ladd_dist.engines.replicated import ReplicatedEngine

    module = blueprint.whole(world.device)
    cast_in_passes(module, blueprint.dtype)
    return ReplicatedEngine(module, config.student_optimizer, torch.float32, world)


_LOCAL = EngineEntry(
    build=_build_local,
    place_frozen=lambda config, blueprint, world: blueprint.whole(world.device),
    launcher="python",
    layout=lambda config, size, rank: ranges.whole,
    residency=lambda config: Residency(handling="casts"),
)


def _build_fsdp2(config: Config, blueprint: "Blueprint", world: "World") -> "Engine":
    from ladd_dist.engines.fsdp2 import Fsdp2Engine

    return Fsdp2Engine(blueprint, config.student_optimizer, config.fsdp2, world)


def _place_fsdp2(config: Config, blueprint: "Blueprint", world: "World") -> "nn.Module":
    from ladd_dist.engines.fsdp2 import make_mesh, shard_module

    return shard_module(blueprint, make_mesh(config.fsdp2, world), config.fsdp2, world)


def _fsdp2_layout(config: Config, size: int, rank: int) -> Layout:
    within = size // config.fsdp2.replicas
    return partial(ranges.rows, size=within, rank=rank % within)


def _check_replicas(config: Config, size: int) -> None:
    replicas = config.fsdp2.replicas
    if size % replicas:
        raise LaddError(f"fsdp2.replicas={replicas} does not divide {size} ranks: choose a divisor of them")


_FSDP2 = EngineEntry(
    build=_build_fsdp2,
    place_frozen=_place_fsdp2,
    launcher="torchrun",
    layout=_fsdp2_layout,
    residency=lambda config: Residency(handling="blocks"),
    section="fsdp2",
    check_ranks=_check_replicas,
)


def _build_zero3(config: Config, blueprint: "Blueprint", world: "World") -> "Engine":
    from ladd_dist.engines.zero3 import Zero3Engine

    accumulation = config.accumulation(world.size)
    return Zero3Engine(blueprint, config.student_optimizer, accumulation, config.zero3, world)


def _place_zero3(config: Config, blueprint: "Blueprint", world: "World") -> "nn.Module":
    from ladd_dist.engines.zero3 import shard_frozen

    return shard_frozen(blueprint, world, config.zero3)


def _zero3_layout(config: Config, size: int, rank: int) -> Layout:
    return partial(ranges.elements, size=size, rank=rank)


def _zero3_residency(config: Config) -> Residency:
    offload = config.zero3.offload
    return Residency(
        masters="device" if offload == "none" else "host",
        weights="host" if offload == "all" else "device",
        # An offloaded gradient is accumulated in one buffer and handed to AdamW in another.
        gradient_copies=1 if offload == "none" else 2,
        copies_weights=True,
        pads_moments=True,
        keeps_gathered=True,
        fp32_buffers=True,
        keeps_inputs=True,
        keeps_gradients=True,
        handling="tensors",
        whole_blocks=ranges.WHOLE_BLOCKS,  # from the second iteration on, when DeepSpeed knows the next pass
    )


def _check_zero3(config: Config) -> None:
    if config.student_optimizer.state == "8bit":
        reason = "offloads only fp32 state" if config.zero3.offload != "none" else "partitions only fp32 state"
        raise LaddError(f"student_optimizer.state=8bit: engine=zero3 {reason}; set fp32, or engine=fsdp2")
    asked = config.student.compile is True, config.teacher.compile is True and config.teacher.placement == "shard"
    if any(asked):
        raise LaddError("compile=true: the hooks of engine=zero3 cannot be compiled; set engine=fsdp2")
    if config.student.float8:
        raise LaddError("student.float8=true: engine=zero3 has linear layers of its own; set engine=fsdp2")


_ZERO3 = EngineEntry(
    build=_build_zero3,
    place_frozen=_place_zero3,
    launcher="deepspeed",
    layout=_zero3_layout,
    compiles=False,  # its hooks cannot be
    residency=_zero3_residency,
    section="zero3",
    check=_check_zero3,
)

BUILTIN = {"local": _LOCAL, "fsdp2": _FSDP2, "zero3": _ZERO3}
"""By the name that ``engine`` gives them."""
