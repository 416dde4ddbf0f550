"""What one rank keeps from one iteration to the next, in bytes: from shapes alone, and as measured.

Counted at the end of a backward pass, when every gradient is there. On top come what an iteration needs only while
it runs (activations, gathered blocks, communication buffers) and, in host memory, the checkpoint writer's copy of
masters, moments and average.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ladd_dist.config import Config, OptimizerConfig
from ladd_dist.engines.base import STATE_KINDS, Engine
from ladd_dist.engines.blueprint import trainable
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.eight_bit import BLOCK, chunks, quantizable
from ladd_dist.engines.ema import Ema, average_place
from ladd_dist.engines.entry import MemoryKind, Residency
from ladd_dist.engines.ranges import Layout, elements, gathered_limit, whole
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT, Method, Networks, optimizer
from ladd_dist.methods.registry import method_of
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.float8 import saved_bytes

StateBytes = Counter[tuple[MemoryKind, str]]
"""Bytes, by the memory that they are in and by what they hold: the student's ``masters``, ``weights`` (in compute
precision: what is frozen, and an engine's copy of the masters), ``gradients``, ``moments`` and ``ema``; the method's
other networks by name; ``buffers`` of student and frozen networks; ``gathered``, the parameters that an engine keeps
whole."""

_FP32 = 4


def expected_state(config: Config, size: int, rank: int = 0) -> StateBytes:
    """Of the method's networks on rank ``rank`` out of ``size``, from their shapes alone. Rank 0 holds most."""
    return state_of(config, method_of(config).networks(config), size, rank)


def state_of(config: Config, networks: Networks, size: int, rank: int = 0) -> StateBytes:
    """The same, of networks that are there already."""
    method, layout = method_of(config), engine_entry(config.engine).layout(config, size, rank)
    student, frozen = networks.trained[STUDENT], list(networks.frozen.values())
    state = trained_state(config, student, size, rank) + _buffers(config, student, frozen)
    for name, module in networks.trained.items():
        if name != STUDENT:
            state += _replicated(name, optimizer(config, method.OPTIMIZERS[name]), _shapes(module))
    for name, module in networks.frozen.items():
        state += _frozen(config, name, _shapes(module), layout, size)
        if name == "teacher" and config.teacher.float8:
            state["device", name] -= _saved_by_float8(config, module)
    return state


def on(state: StateBytes, place: MemoryKind) -> int:
    """Bytes in one memory, whatever they hold."""
    return sum(size for (where, _), size in state.items() if where == place)


def describe(state: StateBytes) -> str:
    """One line: GB (10^9 bytes) in each memory, and of what, largest first."""
    return "; ".join(_describe(state, place) for place in get_args(MemoryKind) if on(state, place))


def _describe(state: StateBytes, place: MemoryKind) -> str:
    kinds = [f"{kind} {size / 1e9:.3g}" for (where, kind), size in state.most_common() if where == place and size]
    return f"{on(state, place) / 1e9:.3g} GB of {place} memory ({', '.join(kinds)})"


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [p.shape for p in module.parameters()]


def trained_state(config: Config, module: nn.Module, size: int, rank: int = 0) -> StateBytes:
    """State of a trained network without its buffers on one rank out of ``size``, from shapes alone.

    Parameters that do not require a gradient are kept in compute precision and have no masters, gradients, moments
    or average.
    """
    layout, dtype = engine_entry(config.engine).layout(config, size, rank), compute_dtype(config)
    parts = [layout(p.shape) for p in module.parameters() if p.requires_grad]
    stored, held = sum(p.stored for p in parts), sum(p.held for p in parts)
    keeps = residency(config)
    moments = [p.stored if keeps.pads_moments else p.held for p in parts]
    computing = [p.shape for p in module.parameters() if keeps.copies_weights or not p.requires_grad]
    state: StateBytes = Counter()
    state[keeps.masters, "masters"] = _FP32 * stored
    state[keeps.masters, "gradients"] = _FP32 * stored * keeps.gradient_copies
    state[keeps.masters, "moments"] = adamw_moments(moments, config.student_optimizer)
    state[average_place(config), "ema"] = _FP32 * held
    state[keeps.weights, "weights"] = sum(layout(shape).stored for shape in computing) * dtype.itemsize
    if keeps.keeps_gathered:
        state["device", "gathered"] = _gathered(_shapes(module), size, dtype)
    return state


def checkpoint_copy(config: Config, networks: Networks, layout: Layout, rank: int = 0) -> int:
    """Bytes of a rank's part of a checkpoint: in fp32, whatever moments are held in; other networks are rank 0's.

    Args:
        layout: what the rank holds of the student, or `whole` for all ranks together.
    """
    method, total = method_of(config), 0
    for name, net in networks.trained.items():
        places, copies = (layout, 1) if name == STUDENT else (whole, 0)  # of the average
        copies += 1 + len(optimizer(config, method.OPTIMIZERS[name]).moments)
        if name == STUDENT or rank == 0:
            total += _FP32 * copies * sum(places(p.shape).held for p in trainable(net).values())
    return total


def residency(config: Config) -> Residency:
    """Where the engine keeps what."""
    return engine_entry(config.engine).residency(config)


def adamw_moments(tensors: Sequence[int], config: OptimizerConfig) -> int:
    """Bytes of AdamW's moments of a network, from the elements of its tensors on one rank."""
    eight_bit = in_eight_bits(tensors, config)
    size = _FP32 * (sum(tensors) - eight_bit)
    if eight_bit:
        count, length = chunks(eight_bit)
        codes, scales, table = count * length, count * length // BLOCK * _FP32, 256 * _FP32
        size += codes + scales + table
    return len(config.moments) * size


def in_eight_bits(tensors: Sequence[int], config: OptimizerConfig) -> int:
    """Elements whose moments are held in 8 bits."""
    return sum(numel for numel in tensors if config.state == "8bit" and quantizable(numel))


def _gathered(shapes: list[torch.Size], size: int, dtype: torch.dtype) -> int:
    """Whole copies of the biases and norm weights that are kept gathered, padding included."""
    if size == 1:  # one rank's partition is the parameter itself
        return 0
    limit = gathered_limit(shapes)
    return sum(elements(s, size, 0).gathered for s in shapes if s.numel() <= limit) * dtype.itemsize


def _frozen(config: Config, name: str, shapes: list[torch.Size], layout: Layout, size: int) -> StateBytes:
    dtype, keeps = compute_dtype(config), residency(config)
    place: MemoryKind = keeps.weights if _sharded(config) else "device"
    parts = map(layout if _sharded(config) else whole, shapes)
    state: StateBytes = Counter({(place, name): sum(p.stored for p in parts) * dtype.itemsize})
    if _sharded(config) and keeps.keeps_gathered:
        state["device", "gathered"] = _gathered(shapes, size, dtype)
    return state


def _saved_by_float8(config: Config, teacher: nn.Module) -> int:
    assert isinstance(teacher, Backbone)
    return saved_bytes(teacher, teacher.token_layers(), compute_dtype(config).itemsize)


def _sharded(config: Config) -> bool:
    return config.teacher.placement == "shard"


def _replicated(name: str, config: OptimizerConfig, shapes: list[torch.Size]) -> StateBytes:
    tensors = [s.numel() for s in shapes]
    return Counter({("device", name): 2 * _FP32 * sum(tensors) + adamw_moments(tensors, config)})


def _buffers(config: Config, student: nn.Module, frozen: list[nn.Module]) -> StateBytes:
    itemsize = _FP32 if _sharded(config) and residency(config).fp32_buffers else compute_dtype(config).itemsize
    theirs = sum(b.numel() for module in frozen for b in module.buffers())
    return Counter({("device", "buffers"): sum(b.numel() for b in student.buffers()) * _FP32 + theirs * itemsize})


def measured_state(method: Method, ema: Ema) -> Counter[str]:
    """Bytes of the storages that this rank's networks and average hold, by kind; a shared one counts once."""
    return _storage_bytes(_tensors(method, ema))


def measured_trained(engine: Engine, ema: Ema) -> Counter[str]:
    """The same of one trained network and its average."""
    return _storage_bytes(_trained_tensors(engine, ema))


def _storage_bytes(tensors: Iterable[tuple[str, Tensor]]) -> Counter[str]:
    state, seen = Counter[str](), set[int]()
    for kind, tensor in tensors:
        for storage in storages(tensor):
            if storage.data_ptr() not in seen:
                state[kind] += storage.nbytes()
                seen.add(storage.data_ptr())
    return state


def _tensors(method: Method, ema: Ema) -> Iterator[tuple[str, Tensor]]:
    yield from _trained_tensors(method.student, ema)
    for name, engine in method.trained.items():
        if name != STUDENT:
            yield from ((name, t) for kind in STATE_KINDS for t in _locals(engine, kind))
            yield from ((name, t) for t in _gradients(engine.module))
    for name, module in method.frozen.items():
        yield from _module_tensors(module, name)


def _trained_tensors(engine: Engine, ema: Ema) -> Iterator[tuple[str, Tensor]]:
    kinds = dict(zip(STATE_KINDS, ("masters", "moments", "moments"), strict=True))
    yield from ((kind, t) for key, kind in kinds.items() for t in _locals(engine, key))
    yield from (("gradients", t) for t in _gradients(engine.module))
    yield from (("ema", shard.local) for shard in ema.shards().values())
    yield from _module_tensors(engine.module, "weights")


def _module_tensors(module: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    for p in module.parameters():
        partition = getattr(p, "ds_tensor", None)
        yield from [(kind, p)] if partition is None else [(kind, partition), ("gathered", p)]
    yield from (("buffers", b) for b in module.buffers())


def _locals(engine: Engine, kind: Any) -> Iterator[Tensor]:
    return (shard.local for shard in engine.shards(kind).values())


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    yield from (p.grad for p in module.parameters() if p.grad is not None)
    deepspeed = getattr(next(iter(trainable(module).values()), None), "_z3_optimizer", None)
    if deepspeed is not None:
        yield deepspeed.grad_partitions_flat_buffer
        yield from (group.grad for group in deepspeed.fp32_partitioned_groups_flat if group.grad is not None)


def storages(tensor: Any) -> Iterable[torch.UntypedStorage]:
    """What a tensor is stored in: this rank's part of a sharded one, codes and scales of a quantized one."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name).untyped_storage() for name in tensor.__tensor_flatten__()[0]]
    return [tensor.untyped_storage()]
