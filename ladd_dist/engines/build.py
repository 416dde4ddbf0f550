"""Pick the engine that the configuration names."""

from typing import Protocol

import torch
from torch import nn

from ladd_dist.config import Config
from ladd_dist.distributed import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError


class Wrappable(Protocol):
    """A network that names the submodules to shard one by one."""

    def wrap_points(self) -> list[nn.Module]:
        """In the order of the forward pass."""
        ...


def check_launch(config: Config, world: World) -> None:
    """Reject an engine that does not fit the way the processes were started.

    Raises:
        LaddError: naming the launcher to use.
    """
    if config.engine == "local" and world.size > 1:
        raise LaddError(f"engine=local runs in one process, but {world.size} were started: set engine=fsdp2 or zero3")
    if config.engine != "local" and not torch.distributed.is_initialized():
        launcher = "torchrun" if config.engine == "fsdp2" else "deepspeed"
        raise LaddError(f"engine={config.engine} needs a process group: start with {launcher}, or set engine=local")


def compute_dtype(config: Config) -> torch.dtype:
    """dtype of activations for ``train.precision``."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def build_engine(config: Config, module: nn.Module, world: World) -> Engine:
    """Put the trainable network, fp32 on the CPU, under the configured engine."""
    optimizer, dtype = config.student_optimizer, compute_dtype(config)
    if config.engine == "local":
        return ReplicatedEngine(module, optimizer, dtype, world)
    if config.engine == "fsdp2":
        from ladd_dist.engines.fsdp2 import Fsdp2Engine

        return Fsdp2Engine(module, wrap_points(module), optimizer, dtype, world)
    from ladd_dist.engines.zero3 import Zero3Engine

    micro = config.micro_batch(world.size)
    return Zero3Engine(module, optimizer, dtype, micro, config.accumulation(world.size), world)


def place_frozen(config: Config, module: nn.Module, world: World) -> nn.Module:
    """Freeze a network and place it on the ranks as ``teacher.placement`` says."""
    module.requires_grad_(False).eval()
    if config.engine == "local" or config.teacher.placement == "replicate":
        return module.to(world.device)
    if config.engine == "fsdp2":
        from ladd_dist.engines.fsdp2 import shard_module

        return shard_module(module, wrap_points(module), compute_dtype(config), world)
    from ladd_dist.engines.zero3 import shard_frozen

    return shard_frozen(module, compute_dtype(config), world)


def wrap_points(module: nn.Module) -> list[nn.Module]:
    """The wrap points that the network names."""
    points: Wrappable = module  # type: ignore[assignment]
    return points.wrap_points()
