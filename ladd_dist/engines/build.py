"""Pick the engine that the configuration names."""

from importlib.util import find_spec

import torch
from torch import nn

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError


def check_launch(config: Config, world: World) -> None:
    """Reject an engine that does not fit the way the processes were started, or the device.

    Raises:
        LaddError: naming the launcher or the setting to use.
    """
    if config.engine == "local" and world.size > 1:
        raise LaddError(f"engine=local runs in one process, but {world.size} were started: set engine=fsdp2 or zero3")
    if config.engine != "local" and not torch.distributed.is_initialized():
        launcher = "torchrun" if config.engine == "fsdp2" else "deepspeed"
        raise LaddError(f"engine={config.engine} needs a process group: start with {launcher}, or set engine=local")
    replicas = config.fsdp2.replicas
    if world.size % replicas:
        raise LaddError(f"fsdp2.replicas={replicas} does not divide {world.size} ranks: choose a divisor of them")
    for key in ("student_optimizer", "head_optimizer"):
        if getattr(config, key) is None or getattr(config, key).state == "fp32":
            continue
        if world.device.type != "cuda":
            raise LaddError(f"{key}.state=8bit needs a GPU, but this run is on the CPU: set {key}.state=fp32")
        if find_spec("torchao") is None:
            raise LaddError(f"{key}.state=8bit needs torchao: pip install torchao==0.18.0, or set {key}.state=fp32")


def compute_dtype(config: Config) -> torch.dtype:
    """dtype of activations for ``train.precision``."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def build_engine(config: Config, blueprint: Blueprint, world: World) -> Engine:
    """Build the trainable network under the configured engine, fp32 masters and all."""
    optimizer, dtype = config.student_optimizer, compute_dtype(config)
    if config.engine == "local":
        return ReplicatedEngine(blueprint.whole(world.device), optimizer, dtype, world)
    if config.engine == "fsdp2":
        from ladd_dist.engines.fsdp2 import Fsdp2Engine, make_mesh

        return Fsdp2Engine(blueprint, make_mesh(config.fsdp2, world), optimizer, dtype, config.fsdp2, world)
    from ladd_dist.engines.zero3 import Zero3Engine

    return Zero3Engine(blueprint, optimizer, dtype, config.accumulation(world.size), config.zero3, world)


def place_frozen(config: Config, blueprint: Blueprint, world: World) -> nn.Module:
    """Build a frozen network where ``teacher.placement`` says: whole on every rank, or sharded."""
    if config.engine == "local" or config.teacher.placement == "replicate":
        return blueprint.whole(world.device)
    if config.engine == "fsdp2":
        from ladd_dist.engines.fsdp2 import make_mesh, shard_module

        return shard_module(blueprint, make_mesh(config.fsdp2, world), compute_dtype(config), config.fsdp2, world)
    from ladd_dist.engines.zero3 import shard_frozen

    return shard_frozen(blueprint, compute_dtype(config), world, config.zero3)
