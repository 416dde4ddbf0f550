"""The networks under the engine that the configuration names, and whether it can run as it was started."""

from importlib.util import find_spec

import torch
from torch import nn

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.registry import engine_entry
from ladd_dist.engines.settings import check_ranks, check_settings
from ladd_dist.errors import LaddError

FLOAT8_CAPABILITY = 8, 9
"""The first with tensor cores for it."""


def check_launch(config: Config, world: World) -> None:
    """Reject an engine that does not fit its settings, the way the processes were started, or the device.

    Raises:
        LaddError: naming the launcher or the setting to use.
    """
    check_settings(config)
    check_ranks(config, world.size)
    entry = engine_entry(config.engine)
    if entry.launcher != "python" and not torch.distributed.is_initialized():
        raise LaddError(
            f"engine={config.engine} needs a process group: start with {entry.launcher}, or set engine=local"
        )
    for key in ("student_optimizer", "head_optimizer"):
        if getattr(config, key) is not None and getattr(config, key).state == "8bit":
            _check_8bit(key, world)
    for network in ("teacher", "student"):
        if getattr(config, network).float8:
            _check_float8(network, world)


def _check_8bit(key: str, world: World) -> None:
    if world.device.type != "cuda":
        raise LaddError(f"{key}.state=8bit needs a GPU, but this run is on the CPU: set {key}.state=fp32")
    if find_spec("torchao") is None:
        raise LaddError(f"{key}.state=8bit needs torchao: pip install torchao==0.18.0, or set {key}.state=fp32")


def _check_float8(network: str, world: World) -> None:
    """A CPU multiplies what it reads in 8 bits too, slowly."""
    if world.device.type != "cuda":
        return
    name, instead = torch.cuda.get_device_name(world.device), f"set {network}.float8=false"
    if torch.version.hip:
        raise LaddError(f"{network}.float8=true is for NVIDIA's GPUs, and not for {name}: {instead}")
    if (capability := torch.cuda.get_device_capability(world.device)) < FLOAT8_CAPABILITY:
        has, needs = (".".join(map(str, each)) for each in (capability, FLOAT8_CAPABILITY))
        raise LaddError(f"{network}.float8=true needs compute capability {needs}, and {name} has {has}: {instead}")


def compute_dtype(config: Config) -> torch.dtype:
    """dtype of activations for ``train.precision``."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def build_engine(config: Config, blueprint: Blueprint, world: World) -> Engine:
    """Build the trained network under the configured engine, with fp32 master weights."""
    return engine_entry(config.engine).build(config, blueprint, world)


def place_frozen(config: Config, blueprint: Blueprint, world: World) -> nn.Module:
    """Build a frozen network where ``teacher.placement`` says: whole on every rank, or sharded."""
    if config.teacher.placement == "replicate":
        return blueprint.whole(world.device)
    return engine_entry(config.engine).place_frozen(config, blueprint, world)
