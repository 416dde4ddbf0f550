"""DeepSpeed ZeRO-3: the same contract as FSDP2, for clusters that run DeepSpeed."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig, Zero3Config
from ladd_dist.distributed.world import World
from ladd_dist.engines import ranges
from ladd_dist.engines.base import Engine, Shard, StateKind, fill
from ladd_dist.engines.blueprint import Blueprint, trainable, wrap_points
from ladd_dist.engines.optimizer import adamw, allocate_state, set_lr, set_state_updates, state_updates


def _deepspeed(world: World) -> Any:
    """DeepSpeed, imported late: it probes for compilers and devices, and needs to be told about a CPU run."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif world.device.index is not None:
        # It takes this for the number of the GPU, which is the first one where each task of Slurm sees its own alone.
        os.environ["LOCAL_RANK"] = str(world.device.index)
    import deepspeed

    if world.device.type == "cpu":
        # There it would compile an all-reduce for inference at the first start, which training never calls. A process
        # that is killed meanwhile leaves a lock behind that every later start waits for, without end. Nothing else is
        # asked for in this table, which DeepSpeed would fill by a second of running compilers.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _settings(blueprint: Blueprint, world: World, config: Zero3Config) -> dict[str, Any]:
    cuda = world.device.type == "cuda"
    place = {"device": "cpu", "pin_memory": cuda}
    zero: dict[str, Any] = {"stage": 3, "overlap_comm": cuda, **_sizes(blueprint.on_meta())}
    if config.offload != "none":
        zero["offload_optimizer"] = place
    if config.offload == "all":
        zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": blueprint.dtype == torch.bfloat16},
        # Weights are gathered in the compute precision; gradients are reduced and kept in fp32.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW is as fused, also on the CPU
        "steps_per_print": 2**31,
    }


def _build(blueprint: Blueprint, settings: dict[str, Any], world: World) -> nn.Module:
    """The network with every parameter partitioned as it is made, filled with this rank's ranges."""
    with _deepspeed(world).zero.Init(config_dict_or_path=settings):
        module = blueprint.build()
    fill(_partitions(dict(module.named_parameters()), world), blueprint.weights)
    blueprint.fill_buffers(module)
    return module


def _sizes(module: nn.Module) -> dict[str, int]:
    """DeepSpeed's buffer sizes, in elements, from the network's own.

    Its defaults are absolute: they would keep a network of under a billion parameters whole on every rank. Here
    biases and norm weights stay gathered, a reduction holds what is trained of one block, and at most `WHOLE_BLOCKS`
    are whole at once.
    """
    blocks = wrap_points(module)
    block = max(sum(p.numel() for p in b.parameters()) for b in blocks)
    return {
        "reduce_bucket_size": max(1, *(sum(p.numel() for p in trainable(b).values()) for b in blocks)),
        "stage3_prefetch_bucket_size": block,
        "stage3_max_live_parameters": ranges.WHOLE_BLOCKS * block,
        "stage3_max_reuse_distance": block,
        "stage3_param_persistence_threshold": ranges.gathered_limit(p.shape for p in module.parameters()),
    }


def _partitions(parameters: Mapping[str, Any], world: World) -> dict[str, Shard]:
    """This rank's partition of each parameter, in the compute precision."""
    return {name: _shard(p, p.ds_tensor.data, world) for name, p in parameters.items()}


def _shard(parameter: Any, partition: Tensor, world: World) -> Shard:
    held = ranges.elements(parameter.ds_shape, world.size, world.rank)
    return Shard(parameter.ds_shape, held.offset, partition.detach()[: held.held])


def shard_frozen(blueprint: Blueprint, world: World, config: Zero3Config) -> nn.Module:
    """A frozen network in partitions, gathered block by block in forward and backward.

    The module is returned, not DeepSpeed's engine: calling the engine of a network that has no optimizer makes
    DeepSpeed 0.19 refuse the backward pass through it.
    """
    settings = _settings(blueprint, world, Zero3Config(offload="all" if config.offload == "all" else "none"))
    module = _build(blueprint, settings, world)
    engine, *_ = _deepspeed(world).initialize(model=module, config=settings, dist_init_required=False)
    object.__setattr__(engine.module, "deepspeed_engine", engine)  # keeps the hooks' owner alive, not a submodule
    _keep_counts(engine.module)
    return engine.module


class _Counts:
    """How many gradients each submodule still has to see: DeepSpeed lets its weights go after the last.

    It starts the count anew in every forward pass, so that of two passes before a backward one, only the last would
    let any weights go.
    """

    def __init__(self, module: nn.Module) -> None:
        self._submodules: list[Any] = list(module.modules())
        self._counts: dict[Any, int] = {}

    def save(self) -> None:
        """Keep the counts of the pass that has just run, or is to be interrupted by another."""
        self._counts = {m: m.ds_grads_remaining for m in self._submodules if hasattr(m, "ds_grads_remaining")}

    def restore(self) -> None:
        """Put back what was saved, once."""
        for submodule, count in self._counts.items():
            submodule.ds_grads_remaining = count
        self._counts = {}


def _keep_counts(module: nn.Module) -> None:
    """Let a pass without graph run between forward and backward of another: LADD's of the real latents does."""
    counts = _Counts(module)
    module.register_forward_pre_hook(lambda *_: None if torch.is_grad_enabled() else counts.save(), prepend=True)
    module.register_forward_hook(lambda *_: counts.restore())


class Zero3Engine(Engine):
    """fp32 partitioned masters inside DeepSpeed's optimizer."""

    def __init__(
        self,
        blueprint: Blueprint,
        optimizer: OptimizerConfig,
        accumulation: int,
        config: Zero3Config,
        world: World,
    ) -> None:
        settings = _settings(blueprint, world, config)
        module = _build(blueprint, settings, world)
        self._inner = adamw(trainable(module).values(), optimizer)
        settings |= {"gradient_clipping": optimizer.clip_norm, "gradient_accumulation_steps": accumulation}
        self._engine, *_ = _deepspeed(world).initialize(
            model=module, optimizer=self._inner, config=settings, dist_init_required=False
        )
        self.module, self._world, self._moments = self._engine.module, world, optimizer.moments
        _keep_counts(self.module)
        self._counts = _Counts(self.module)
        allocate_state(self._inner, self._engine.optimizer.fp32_partitioned_groups_flat, optimizer)
        # In bf16 DeepSpeed made its fp32 masters of rounded weights: read them again.
        fill(self.shards(), blueprint.weights)

    def __call__(self, *inputs: object, **options: object) -> object:
        outputs = self._engine(*inputs, **options)
        if torch.is_grad_enabled():
            self._counts.save()
        return outputs

    def backward(self, loss: Tensor, last: bool = True) -> None:
        self._counts.restore()  # the module may have run with a graph for others since, as a frozen base does
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def update(self, lr: float) -> Tensor:
        set_lr(self._inner, lr)
        self._engine.step()  # skips the update by itself where the norm is not finite
        # A number after a skipped update, and in host memory where the optimizer is offloaded.
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._world.device)

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        if kind != "param" and kind not in self._moments:
            return {}
        key = None if kind == "param" else kind
        # DeepSpeed's public accessors copy what is offloaded to the CPU; the contract wants live views.
        state = self._engine.optimizer._get_fp32_opt_state_partition
        return {
            name: _shard(p, state(p, release_swap_buffers=False, optim_state_key=key)[0], self._world)
            for name, p in trainable(self.module).items()
        }

    def publish(self) -> None:
        # Small parameters stay gathered between passes: have those let go first and gathered anew afterwards.
        gathered = self._engine.optimizer.persistent_parameters
        if gathered:
            gathered[0].partition(gathered)
        masters = self.shards()
        for name, partition in _partitions(trainable(self.module), self._world).items():
            partition.local.copy_(masters[name].local)
        if gathered:
            gathered[0].all_gather(gathered)

    @property
    def updates(self) -> int:
        return state_updates(self._inner)

    @updates.setter
    def updates(self, count: int) -> None:
        set_state_updates(self._inner, count)
