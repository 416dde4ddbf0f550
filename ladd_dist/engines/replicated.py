"""Whole on every rank, gradients averaged: the discriminator heads everywhere, and the student on one process.

With one process it is the local engine, the oracle that the sharded ones are held against.
"""

import torch
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine, Shard, StateKind
from ladd_dist.engines.blueprint import trainable, whole_shards
from ladd_dist.engines.optimizer import ShardedAdamW


class ReplicatedEngine(Engine):
    """fp32 weights; one all-reduce of all gradients per update.

    Args:
        module: on the device already; rank 0's values go to every rank.
        dtype: autocast's; float32 for a module in fp32, and for one whose weights `casting` casts.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, dtype: torch.dtype, world: World) -> None:
        self.module, self.world = module, world
        self.owner = world.is_main
        self._optimizer = ShardedAdamW(whole_shards(trainable(module)), optimizer)
        self._autocast = torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
        world.broadcast_(list(module.state_dict().values()))

    def __call__(self, *inputs: object, **options: object) -> object:
        with self._autocast:
            return self.module(*inputs, **options)

    def update(self, lr: float) -> Tensor:
        found = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        gradients = {name: g if g.ndim == 1 else g.view(-1) for name, g in found.items()}
        self.world.mean_(list(gradients.values()))
        norm = self._optimizer.step(gradients, lr)
        self.module.zero_grad()
        return norm

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        return self._optimizer.shards(kind)

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    @updates.setter
    def updates(self, count: int) -> None:
        self._optimizer.updates = count
