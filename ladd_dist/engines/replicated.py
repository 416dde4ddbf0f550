"""Whole on every rank, gradients averaged: the discriminator heads everywhere, and the student on one process.

With one process it is the local engine, the oracle that the sharded ones are held against.
"""

import torch
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig
from ladd_dist.distributed import World
from ladd_dist.engines.base import Engine, Shard, StateKind, adamw, allocate_state, set_lr, set_state_step


class ReplicatedEngine(Engine):
    """fp32 weights; bf16 compute by autocast; one all-reduce of all gradients per update."""

    replicated = True

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, dtype: torch.dtype, world: World) -> None:
        self.module = module.to(world.device)
        self.world = world
        self.clip_norm = optimizer.clip_norm
        self.optimizer = adamw(self.module.parameters(), optimizer)
        allocate_state(self.optimizer, self.module.parameters())
        self._autocast = torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32)
        world.broadcast_(list(module.state_dict().values()))

    def __call__(self, *inputs: object) -> object:
        with self._autocast:
            return self.module(*inputs)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        loss.backward()

    def step(self, lr: float) -> Tensor:
        self.world.mean_([p.grad for p in self.module.parameters() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        return {
            name: Shard(p.shape, 0, (p.data if kind == "param" else self.optimizer.state[p][kind]).view(-1))
            for name, p in self.module.named_parameters()
        }

    def set_updates(self, count: int) -> None:
        set_state_step(self.optimizer, count)
