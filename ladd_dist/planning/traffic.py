"""What an iteration sends between ranks: counted at the process groups, and what theory says."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ladd_dist.config import Config
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.ranges import Layout
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.registry import method_of

_KINDS = {
    "all_gather": ("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_"),
    "reduce_scatter": ("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"),
    "all_reduce": ("allreduce_", "allreduce_coalesced_"),
    "broadcast": ("broadcast_",),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}


@dataclass
class Traffic:
    """Calls of one collective, and the bytes of the whole tensors that they moved (all ranks' parts together)."""

    calls: int = 0
    bytes: int = 0


class TrafficCounter(TorchDispatchMode):
    """Counts collectives on this rank while it is active, by kind, such as ``all_gather``, in ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Traffic] = defaultdict(Traffic)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Look at operators on their way."""
        self.see(func, args)
        return func(*args, **(kwargs or {}))

    def see(self, func: Any, args: tuple) -> None:
        """Count an operator if it is a collective."""
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            kind = _KIND_OF.get(name, name)
            self.seen[kind].calls += 1
            self.seen[kind].bytes += _whole_bytes(kind, args)


def _whole_bytes(kind: str, args: tuple) -> int:
    # The first argument is the output, the second the input: a gather's output is whole, a scatter's input.
    return sum(t.numel() * t.element_size() for t in _tensors(args[1 if kind == "reduce_scatter" else 0]))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return []


def expected(config: Config, elements: Mapping[str, int], trained: int, micro_batches: int) -> dict[str, int]:
    """Bytes of whole tensors that an iteration must move, by collective.

    A forward pass all-gathers every block once in the compute precision, a backward pass once more (recomputing
    activations is part of it). Gradients are reduced in fp32: the student's with every micro-batch, those of other
    trained networks once. FSDP2 moves just that; ZeRO-3 gathers less of a network that has one pass, since it keeps
    up to three blocks for the next.

    Args:
        elements: of each of the method's networks, see `gathered_elements`.
        trained: those of the student that gradients are reduced for: all but the base's, if it has adapters.
    """
    method, runs = method_of(config), method_of(config).forward_backward(config)
    gathered = sum(elements[name] * runs[name] for name in sharded(config)) * compute_dtype(config).itemsize
    return {
        "all_gather": gathered * micro_batches,
        "reduce_scatter": trained * 4 * micro_batches,
        "all_reduce": sum(elements[name] for name in method.OPTIMIZERS if name != STUDENT) * 4,
    }


def gathered_late(config: Config, elements: Mapping[str, int]) -> int:
    """Bytes of whole weights that are gathered for a micro-batch only when they are needed, and not ahead.

    ZeRO-3 gathers ahead in a pass that is as the last one of its network. Of several passes the one with a graph goes
    on to a backward pass that DeepSpeed does not expect (its ``PartitionedParameterCoordinator`` then drops what it
    knows): that one waits for its weights, and so does the next pass forward.
    """
    if not engine_entry(config.engine).residency(config).whole_blocks:
        return 0
    passes = [each for each in method_of(config).passes(config) if each.network in sharded(config)]
    count = Counter(each.network for each in passes)
    backward = Counter(each.network for each in passes if each.gradient != "none")
    late = sum(elements[name] * (often + 1) for name, often in backward.items() if count[name] > 1)
    return late * compute_dtype(config).itemsize


def sharded(config: Config) -> set[str]:
    """Networks that are gathered."""
    runs = set(method_of(config).forward_backward(config))
    return runs if config.teacher.placement == "shard" else {STUDENT}


def gathered_elements(parameters: Iterable[Any], layout: Layout) -> int:
    """Elements of parameters as they are gathered, padded to equal shards, if a rank holds ``layout`` of them."""
    return sum(layout(getattr(p, "ds_shape", p.shape)).gathered for p in parameters)
