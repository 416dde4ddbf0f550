"""PyTorch FSDP2: parameters, gradients and optimizer state sharded over all ranks, gathered block by block."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ladd_dist.config import OptimizerConfig
from ladd_dist.distributed import World
from ladd_dist.engines.base import Engine, Shard, StateKind, adamw, allocate_state, set_lr, set_state_step


def shard_module(module: nn.Module, wrap_points: list[nn.Module], dtype: torch.dtype, world: World) -> nn.Module:
    """Shard a network in place. Compute happens in ``dtype``, gradients are reduced in fp32."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are cast by the network itself: FSDP would also cast the times, and 1000 t in bf16 is wrong.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    module.to(world.device)
    for block in wrap_points:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # FSDP would keep the root's own parameters gathered after a forward pass without backward, such as a
    # preview's, and the next pass would run with those, whatever has been written to the shards since.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return module


class Fsdp2Engine(Engine):
    """fp32 sharded masters; every micro-batch's gradient is reduce-scattered at once, so none is kept whole."""

    def __init__(
        self,
        module: nn.Module,
        wrap_points: list[nn.Module],
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        self.module = shard_module(module, wrap_points, dtype, world)
        self.rank, self.size = world.rank, world.size
        self.clip_norm = optimizer.clip_norm
        self.optimizer = adamw(self.module.parameters(), optimizer)
        allocate_state(self.optimizer, self.module.parameters())

    def backward(self, loss: Tensor, last: bool = True) -> None:
        loss.backward()

    def step(self, lr: float) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        result = {}
        for name, p in self.module.named_parameters():
            tensor: Any = p.data if kind == "param" else self.optimizer.state[p][kind]  # a DTensor
            # Shard(0) gives rank r the rows [r, r + 1) * ceil(rows / size): a contiguous flat range.
            rows = -(-p.shape[0] // self.size)
            offset = min(self.rank * rows, p.shape[0]) * (p.numel() // p.shape[0])
            result[name] = Shard(p.shape, offset, tensor.to_local().view(-1))
        return result

    def set_updates(self, count: int) -> None:
        set_state_step(self.optimizer, count)
