"""What one rank keeps from one iteration to the next, in bytes: from shapes alone, and as measured.

The moment is the end of a backward pass, when gradients are whole. On top come what an iteration needs only
while it runs (activations, gathered blocks, communication buffers) and, in host memory, the checkpoint writer's
copy of masters, moments and average.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ladd_dist.config import Config, OptimizerConfig
from ladd_dist.engines.base import STATE_KINDS, Engine
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.ema import Ema
from ladd_dist.methods.base import STUDENT, Method, optimizer
from ladd_dist.methods.registry import method_of

Place = Literal["device", "host"]
State = Counter[tuple[Place, str]]
"""Bytes by place and kind. Kinds: student's ``masters``, ``weights`` (a copy in compute precision), ``gradients``,
``moments`` and ``ema``; the method's other networks by name; ``buffers`` of student and frozen networks;
``gathered``, parameters that ZeRO-3 never lets go."""

_QUANTIZED, _BLOCK = 4096, 256
"""torchao quantizes moments of at least so many elements, in blocks of this size."""
_FP32 = 4


@dataclass(frozen=True)
class Part:
    """A rank's part of a tensor, in elements: ``held`` are the tensor's own, ``stored`` counts padding too."""

    held: int
    stored: int


Layout = Callable[[torch.Size], Part]


def whole(shape: torch.Size) -> Part:
    """Everything on every rank."""
    return Part(shape.numel(), shape.numel())


def row_part(shape: torch.Size, size: int, rank: int) -> Part:
    """FSDP2's: as many rows on each rank, the last ranks' padded."""
    rows, width = -(-shape[0] // size), shape[1:].numel()
    return Part(_own(shape[0], rows, rank) * width, rows * width)


def flat_part(shape: torch.Size, size: int, rank: int) -> Part:
    """ZeRO-3's: as many elements on each rank, the last ranks' padded."""
    stored = -(-shape.numel() // size)
    return Part(_own(shape.numel(), stored, rank), stored)


def _own(total: int, each: int, rank: int) -> int:
    return min(max(total - rank * each, 0), each)


def expected_state(config: Config, size: int, rank: int = 0) -> State:
    """State of one rank out of ``size``, from the networks' shapes. Rank 0 holds most."""
    networks, layout = method_of(config).networks(config), _layout(config, size, rank)
    student, frozen = networks.trained[STUDENT], list(networks.frozen.values())
    state = _student(config, _shapes(student), layout, size) + _buffers(config, student, frozen)
    for name, module in networks.trained.items():
        if name != STUDENT:
            state += _replicated(name, optimizer(config, method_of(config).OPTIMIZERS[name]), _shapes(module))
    for name, module in networks.frozen.items():
        state += _frozen(config, name, _shapes(module), layout, size)
    return state


def on(state: State, place: Place) -> int:
    """Bytes in one place."""
    return sum(size for (where, _), size in state.items() if where == place)


def describe(state: State) -> str:
    """One line: GB in each place, and of what, largest first."""
    return "; ".join(_describe(state, place) for place in get_args(Place) if on(state, place))


def _describe(state: State, place: Place) -> str:
    kinds = [f"{kind} {size / 1e9:.3g}" for (where, kind), size in state.most_common() if where == place and size]
    return f"{on(state, place) / 1e9:.3g} GB of {place} memory ({', '.join(kinds)})"


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [p.shape for p in module.parameters()]


def _layout(config: Config, size: int, rank: int) -> Layout:
    if config.engine == "local":
        return whole
    if config.engine == "zero3":
        return partial(flat_part, size=size, rank=rank)
    within = size // config.fsdp2.replicas
    return partial(row_part, size=within, rank=rank % within)


def _student(config: Config, shapes: list[torch.Size], layout: Layout, size: int) -> State:
    parts = [layout(shape) for shape in shapes]
    stored, held = sum(p.stored for p in parts), sum(p.held for p in parts)
    zero3, offload = config.engine == "zero3", config.zero3.offload
    place: Place = "device" if offload == "none" else "host"
    # An offloaded gradient is accumulated in one buffer and handed to AdamW in another.
    state: State = Counter({(place, "masters"): _FP32 * stored, (place, "gradients"): _FP32 * stored})
    state[place, "gradients"] *= 1 if offload == "none" else 2
    # DeepSpeed's moments follow its padded masters.
    state[place, "moments"] = sum(
        adamw_moments(p.stored if zero3 else p.held, config.student_optimizer) for p in parts
    )
    state["host" if config.train.ema_device == "cpu" else place, "ema"] = _FP32 * held
    if zero3:
        state["host" if offload == "all" else "device", "weights"] = stored * compute_dtype(config).itemsize
        state["device", "gathered"] = _gathered(shapes, size, compute_dtype(config))
    return state


def adamw_moments(numel: int, config: OptimizerConfig) -> int:
    """Bytes of AdamW's two moments of one tensor."""
    if config.state == "8bit" and numel >= _QUANTIZED and numel % _BLOCK == 0:
        codes, scales, table = numel, numel // _BLOCK * _FP32, 256 * _FP32
        return 2 * (codes + scales + table)
    return 2 * numel * _FP32


def _gathered(shapes: list[torch.Size], size: int, dtype: torch.dtype) -> int:
    """Biases and norm weights, which ZeRO-3 never lets go (see `engines.zero3`)."""
    if size == 1:  # one rank's partition is the parameter itself
        return 0
    vectors = max(s.numel() for s in shapes if len(s) == 1)
    kept = [s for s in shapes if s.numel() <= vectors + 1]
    return sum(size * flat_part(s, size, 0).stored for s in kept) * dtype.itemsize


def _frozen(config: Config, name: str, shapes: list[torch.Size], layout: Layout, size: int) -> State:
    dtype = compute_dtype(config)
    place: Place = "host" if _sharded(config) and config.zero3.offload == "all" else "device"
    parts = map(layout if _sharded(config) else whole, shapes)
    state: State = Counter({(place, name): sum(p.stored for p in parts) * dtype.itemsize})
    if _sharded(config) and config.engine == "zero3":
        state["device", "gathered"] = _gathered(shapes, size, dtype)
    return state


def _sharded(config: Config) -> bool:
    return config.teacher.placement == "shard" and config.engine != "local"


def _replicated(name: str, config: OptimizerConfig, shapes: list[torch.Size]) -> State:
    weights_and_gradients = 2 * _FP32 * sum(s.numel() for s in shapes)
    return Counter({("device", name): weights_and_gradients + sum(adamw_moments(s.numel(), config) for s in shapes)})


def _buffers(config: Config, student: nn.Module, frozen: list[nn.Module]) -> State:
    # DeepSpeed leaves buffers in fp32.
    itemsize = _FP32 if config.engine == "zero3" and _sharded(config) else compute_dtype(config).itemsize
    theirs = sum(b.numel() for module in frozen for b in module.buffers())
    return Counter({("device", "buffers"): sum(b.numel() for b in student.buffers()) * _FP32 + theirs * itemsize})


def measured_state(method: Method, ema: Ema) -> Counter[str]:
    """Bytes of the storages that this rank's networks and average hold, by kind; a shared one counts once."""
    state, seen = Counter[str](), set[int]()
    for kind, tensor in _tensors(method, ema):
        for storage in storages(tensor):
            if storage.data_ptr() not in seen:
                state[kind] += storage.nbytes()
                seen.add(storage.data_ptr())
    return state


def _tensors(method: Method, ema: Ema) -> Iterator[tuple[str, Tensor]]:
    kinds = dict(zip(STATE_KINDS, ("masters", "moments", "moments"), strict=True))
    student = method.student
    yield from ((kind, t) for key, kind in kinds.items() for t in _locals(student, key))
    yield from (("gradients", t) for t in _gradients(student.module))
    yield from (("ema", shard.local) for shard in ema.shards().values())
    for name, engine in method.trained.items():
        if name != STUDENT:
            yield from ((name, t) for key in kinds for t in _locals(engine, key))
            yield from ((name, t) for t in _gradients(engine.module))
    for kind, module in {"weights": student.module, **method.frozen}.items():
        for p in module.parameters():
            partition = getattr(p, "ds_tensor", None)
            yield from [(kind, p)] if partition is None else [(kind, partition), ("gathered", p)]
        yield from (("buffers", b) for b in module.buffers())


def _locals(engine: Engine, kind: Any) -> Iterator[Tensor]:
    return (shard.local for shard in engine.shards(kind).values())


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    yield from (p.grad for p in module.parameters() if p.grad is not None)
    deepspeed = getattr(next(module.parameters()), "_z3_optimizer", None)
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
