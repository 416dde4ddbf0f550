"""A small network and its checkpoints, for tests."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import ALONE, tiny_config
from torch import Tensor, nn

from ladd_dist.checkpoints.reader import Checkpoint, RunState, Shards, network_shards, open_newest
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config, OptimizerConfig
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import STATE_KINDS
from ladd_dist.engines.ema import Ema
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.methods.registry import build_method
from ladd_dist.models.fingerprint import fingerprint

DATA = {"epoch": 1, "samples": 16}


def engine(seed: int, width: int = 5) -> ReplicatedEngine:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    return ReplicatedEngine(module, OptimizerConfig(lr=0.1), torch.float32, ALONE)


def train(net: ReplicatedEngine, steps: int, seed: int = 0) -> None:
    inputs = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        net.backward(net(torch.randn(4, 3, generator=inputs)).square().sum())
        net.step(lr=0.1)


def state_of(net: ReplicatedEngine) -> dict[str, Tensor]:
    return {f"{kind}/{name}": s.local.clone() for kind in STATE_KINDS for name, s in net.shards(kind).items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def config_in(run_dir: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, run_dir / "latents", *overrides)


def run_state(iteration: int, world: World = ALONE, teacher: str = "abc") -> RunState:
    return RunState(
        iteration=iteration,
        updates={"student": iteration},
        data=DATA,
        teacher=teacher,
        engine="local",
        world_size=world.size,
    )


def save(config: Config, world: World, shards: Shards, iteration: int = 1, teacher: str = "abc") -> Path:
    """Write a checkpoint and wait until it is on disk; its folder."""
    writer = CheckpointWriter(config, world)
    writer.save(shards, run_state(iteration, world, teacher))
    writer.wait()
    return Path(config.run_dir) / "checkpoints" / f"step-{iteration:08d}"


def trained_at(run_dir: Path, data: Path, *overrides: str) -> tuple[Config, Checkpoint]:
    """The checkpoint of a student that differs from its teacher, and the configuration."""
    config = tiny_config(run_dir, data, *overrides)
    method = build_method(config, ALONE, Clock(ALONE))
    torch.manual_seed(1)
    for parameter in method.student.module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    ema = {f"ema/param/{n}": s for n, s in Ema(method.student, 0.9, on_host=False).shards().items()}
    shards = network_shards("student", method.student) | ema
    return config, Checkpoint(save(config, ALONE, shards, teacher=fingerprint(config.teacher.path)), ALONE)


def save_at(config: Config, iteration: int, net: ReplicatedEngine) -> Path:
    return save(config, ALONE, network_shards("student", net), iteration)


def newest(run_dir: Path) -> Path | None:
    """The folder that a run would go on from."""
    found = open_newest(run_dir, ALONE)
    return found and found.path


# Ranks


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank that is a thread: meets the others at a barrier and gathers through a shared list."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    box: list[Any] = field(default_factory=list)

    def aside(self) -> "ThreadWorld":
        return self

    def barrier(self) -> None:
        self.meeting.wait(timeout=300)

    def gather(self, value: object) -> list[Any]:
        self.box[self.rank] = value
        self.barrier()
        values = list(self.box)
        self.barrier()
        return values


def in_threads(size: int, function: Callable[[World], Any]) -> list[Any]:
    """``function(world)`` on every rank at once."""
    meeting, box = threading.Barrier(size), [None] * size
    worlds = [ThreadWorld(rank, size, rank, torch.device("cpu"), meeting=meeting, box=box) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, worlds))
