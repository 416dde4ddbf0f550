"""PyTorch FSDP2: parameters, gradients and optimizer state sharded over ranks, gathered block by block.

With ``fsdp2.replicas`` above 1 the ranks form a 2-D mesh (HSDP): the network is sharded within a replica, and
gradients are averaged between replicas.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ladd_dist.config import Fsdp2Config, OptimizerConfig
from ladd_dist.distributed.world import World
from ladd_dist.engines import ranges
from ladd_dist.engines.base import Engine, Shard, StateKind, fill
from ladd_dist.engines.blueprint import Blueprint, trainable, wrap_points
from ladd_dist.engines.optimizer import ShardedAdamW


def make_mesh(config: Fsdp2Config, world: World) -> DeviceMesh:
    """``(shard,)``, or ``(replicate, shard)`` with more than one replica; one for all networks of a run."""
    return _mesh(dist.group.WORLD, world.device.type, world.size, config.replicas)


@lru_cache(maxsize=1)
def _mesh(everyone: dist.ProcessGroup, device: str, size: int, replicas: int) -> DeviceMesh:
    """Kept: a mesh of two dimensions makes communicators, with buffers on the GPU, each time."""
    if replicas == 1:
        return init_device_mesh(device, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))


def shard_module(blueprint: Blueprint, mesh: DeviceMesh, config: Fsdp2Config, world: World) -> nn.Module:
    """Build a network in shards and read this rank's ranges of its weights.

    Gathers and computes in the blueprint's dtype; gradients are reduced in fp32.

    A block's frozen and trained parameters are one unit, though held in different dtypes. FSDP2 needs one dtype of
    those that it reduces gradients of, and gathers all in the compute dtype in one collective; units of their own
    would double the collectives for adapters of a few MB.
    """
    # Inputs are cast by the network itself: FSDP would also cast the times, and 1000 t in bf16 is wrong.
    policy = MixedPrecisionPolicy(param_dtype=blueprint.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    module = blueprint.on_meta()
    blocks: list[Any] = wrap_points(module)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # FSDP would keep the root's own parameters gathered after a forward pass without backward, such as a
    # preview's, and the next pass would run with those, whatever has been written to the shards since.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    _prefetch(blocks, config)
    module.to_empty(device=world.device)
    fill(local_shards(dict(module.named_parameters()), mesh), blueprint.weights)
    blueprint.fill_buffers(module)
    return module


def _prefetch(blocks: list[FSDPModule], config: Fsdp2Config) -> None:
    for index, block in enumerate(blocks):
        if config.forward_prefetch:
            block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 1 + config.forward_prefetch])
        if config.backward_prefetch:
            before = blocks[max(0, index - config.backward_prefetch) : index]
            block.set_modules_to_backward_prefetch(before[::-1])


def local_shards(parameters: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> dict[str, Shard]:
    """This rank's range of every parameter."""
    rank, size = mesh.get_local_rank("shard"), mesh["shard"].size()
    return {
        name: Shard(p.shape, ranges.rows(p.shape, size, rank).offset, _local(p.data))
        for name, p in parameters.items()
    }


def _local(tensor: Any) -> Tensor:
    return tensor.to_local().view(-1)


class Fsdp2Engine(Engine):
    """fp32 sharded masters; every micro-batch's gradient is reduce-scattered at once, so none is kept whole.

    Replicas average theirs once per update, in the last micro-batch's backward pass.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        optimizer: OptimizerConfig,
        config: Fsdp2Config,
        world: World,
    ) -> None:
        mesh = make_mesh(config, world)
        self.module: Any = shard_module(blueprint, mesh, config, world)
        self._replicas, self._prefetches = config.replicas, config.forward_prefetch > 0
        self.owner = config.replicas == 1 or mesh.get_local_rank("replicate") == 0
        # On plain local tensors: DTensor's dispatch costs more than the update of a small shard.
        self._optimizer = ShardedAdamW(
            local_shards(trainable(self.module), mesh), optimizer, mesh["shard"].get_group()
        )

    def backward(self, loss: Tensor, last: bool = True) -> None:
        if self._replicas > 1:
            self.module.set_requires_all_reduce(last)
        loss.backward()

    def update(self, lr: float) -> Tensor:
        gradients = {n: _local(p.grad) for n, p in self.module.named_parameters() if p.grad is not None}
        norm = self._optimizer.step(gradients, lr)
        self.module.zero_grad()
        return norm

    def publish(self) -> None:
        # A pass that ends at a block, as for a teacher's features, leaves the weights of the next ones on their way.
        blocks: list[Any] = wrap_points(self.module) if self._prefetches else []
        for block in blocks:
            block.unshard()
            block.reshard()

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        return self._optimizer.shards(kind)

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    @updates.setter
    def updates(self, count: int) -> None:
        self._optimizer.updates = count
