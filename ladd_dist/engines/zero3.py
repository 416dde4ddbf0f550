"""DeepSpeed ZeRO-3: the same contract as FSDP2, for clusters that run DeepSpeed."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig
from ladd_dist.distributed import World
from ladd_dist.engines.base import Engine, Shard, StateKind, adamw, allocate_state, set_lr, set_state_step


def _deepspeed(world: World) -> Any:
    """DeepSpeed, imported late: it probes for compilers and devices, and needs to be told about a CPU run."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    return deepspeed


def _config(dtype: torch.dtype, micro_batch: int, accumulation: int, world: World) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world.size,
        "zero_optimization": {"stage": 3, "overlap_comm": world.device.type == "cuda"},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def shard_frozen(module: nn.Module, dtype: torch.dtype, world: World) -> nn.Module:
    """Partition a frozen network's parameters; they are gathered block by block in forward and backward.

    The module is returned, not DeepSpeed's engine: calling the engine of a network that has no optimizer makes
    DeepSpeed 0.19 refuse the backward pass through it.
    """
    engine, *_ = _deepspeed(world).initialize(
        model=module.to(world.device), config=_config(dtype, 1, 1, world), dist_init_required=False
    )
    module = engine.module
    object.__setattr__(module, "deepspeed_engine", engine)  # keeps the hooks' owner alive, not a submodule
    return module


class Zero3Engine(Engine):
    """fp32 partitioned masters inside DeepSpeed's optimizer, seen through its local-fragment API."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
        micro_batch: int,
        accumulation: int,
        world: World,
    ) -> None:
        module = module.to(world.device)
        whole = {name: p.detach().to("cpu", copy=True) for name, p in module.named_parameters()}
        self._shapes = {name: p.shape for name, p in whole.items()}
        inner = adamw(module.parameters(), optimizer)
        config = _config(dtype, micro_batch, accumulation, world) | {"gradient_clipping": optimizer.clip_norm}
        self._engine, *_ = _deepspeed(world).initialize(
            model=module, optimizer=inner, config=config, dist_init_required=False
        )
        self.module = self._engine.module
        self.optimizer = inner
        self.rank = world.rank
        allocate_state(inner, self._engine.optimizer.fp32_partitioned_groups_flat)
        # In bf16 DeepSpeed rounds the weights before it makes its fp32 masters of them: restore what it lost.
        for name, shard in self.shards().items():
            shard.local.copy_(whole[name].view(-1)[shard.offset : shard.offset + shard.local.numel()])

    def __call__(self, *inputs: object) -> object:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, lr: float) -> Tensor:
        set_lr(self.optimizer, lr)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        result = {}
        for name, p in self.module.named_parameters():
            local = safe_get_local_fp32_param(p) if kind == "param" else safe_get_local_optimizer_state(p, kind)
            shape = self._shapes[name]
            # Partitions are ceil(numel / size) long; what lies past the end of the tensor is padding.
            offset = min(self.rank * _partition(p).numel(), shape.numel())
            result[name] = Shard(shape, offset, local.detach()[: max(0, shape.numel() - offset)])
        return result

    def publish(self) -> None:
        # Small parameters stay gathered between passes: have those let go first and gathered anew afterwards.
        gathered = self._engine.optimizer.persistent_parameters
        if gathered:
            gathered[0].partition(gathered)
        masters = self.shards()
        for name, p in self.module.named_parameters():
            local = masters[name].local
            _partition(p)[: local.numel()].copy_(local)
        if gathered:
            gathered[0].all_gather(gathered)

    def set_updates(self, count: int) -> None:
        set_state_step(self.optimizer, count)


def _partition(parameter: Any) -> Tensor:
    """This rank's partition of a parameter in compute precision, padding included."""
    return parameter.ds_tensor.data
