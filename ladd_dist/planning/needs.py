"""What a rank needs at the most: its state, and what an iteration takes beside it, by part."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ladd_dist.config import Config
from ladd_dist.engines.blueprint import trainable
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.registry import method_of
from ladd_dist.models.backbone import Backbone
from ladd_dist.planning.activations import Moment, called_again, moments
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.memory import checkpoint_copy, state_of
from ladd_dist.planning.onlookers import onlookers

_FP32 = 4


@dataclass(frozen=True)
class Needs:
    """Bytes of one rank, the first, which holds most, at an iteration's worst moment.

    Attributes:
        device: by part; ``gathered`` are whole blocks and their gradients on their way, ``workspace`` what CUDA,
            libraries and the allocator are given.
        host: by part; ``checkpoint copy`` is the writer's.
        worst: that moment.
    """

    device: dict[str, int]
    host: dict[str, int]
    worst: Moment

    @property
    def total(self) -> int:
        """Of the device."""
        return sum(self.device.values())


def needs(config: Config, costs: Costs, size: int, samples: int, workspace: int) -> Needs:
    """Of a rank out of ``size`` with so many samples in a micro-batch."""
    state = costs.once("state", config, size, lambda: state_of(config, costs.networks, size))
    state = state + costs.once("onlookers", config, size, lambda: onlookers(config, costs.networks, size))
    host = {kind: count for (place, kind), count in state.items() if place == "host" and count}
    layout = engine_entry(config.engine).layout(config, size, 0)
    host["checkpoint copy"] = checkpoint_copy(config, costs.networks, layout)
    passes = Counter(each.network for each in method_of(config).passes(config))
    keeps, accumulates = engine_entry(config.engine).residency(config).keeps_gradients, config.accumulation(size) > 1
    way = f"blocks of {passes}, recomputed {config.student.activation_checkpointing}, added {accumulates}"
    blocks = costs.once(way, config, size, lambda: _blocks(config, costs, size, passes))

    def device_at(moment: Moment) -> dict[str, int]:
        parts = {kind: count for (place, kind), count in state.items() if place == "device" and count}
        if not (accumulates or moment.reached or keeps):
            parts.pop("gradients", None)
        parts["gathered"] = parts.get("gathered", 0) + blocks.at(moment)
        return parts | {"activations": moment.bytes, "workspace": workspace}

    worst = max(moments(config, costs, samples), key=lambda moment: sum(device_at(moment).values()))
    return Needs(device_at(worst), host, worst)


@dataclass(frozen=True)
class _Blocks:
    """Bytes of a network's weights that are whole for a while, on one rank.

    Attributes:
        forward: by network, while one of its blocks runs forward.
        backward: by network, while one does so backward, or the last one forward.
        between: by network, between two of them.
        tail: by network, which part of its blocks runs forward with fewer whole than ``forward`` says, as no more
            follow. Until then that part of the graph is not there.
        graph: with the student's graph.
        reduced: gradients of one of its blocks on their way to their shards, in its backward pass.
        coming: gradients of one of its blocks, which count as there and are not while it runs.
        summed: those of one of its blocks in both precisions, when its weights and activations have gone.
        always: what is there all the time.
    """

    forward: Mapping[str, int]
    backward: Mapping[str, int]
    between: Mapping[str, int]
    tail: Mapping[str, float] = field(default_factory=dict)
    graph: int = 0
    reduced: int = 0
    coming: int = 0
    summed: int = 0
    always: int = 0

    def at(self, moment: Moment) -> int:
        """Of all networks at a moment."""
        name = moment.running
        at_last, before = self.backward.get(name, 0), self.forward.get(name, 0)
        early = round(before - self.tail.get(name, 0) * moment.graph)
        runs = self.between.get(name, 0) if moment.between else at_last if moment.backward else max(at_last, early)
        if moment.gradients:
            runs = max(runs - self.coming, self.summed - moment.transient)
        graph = self.graph if moment.running == STUDENT or STUDENT in moment.held else 0
        reduced = self.reduced if moment.gradients else 0
        return runs + graph + reduced + self.always


def _blocks(config: Config, costs: Costs, size: int, passes: Counter[str]) -> _Blocks:
    """FSDP2 holds the block that runs, the next one and what is outside of blocks.

    ZeRO-3 keeps some blocks and what is outside of them from pass to pass, of a network that has one pass in a
    micro-batch: the student's while there is its graph, a frozen network's at any time. Several passes, with and
    without a graph, are never what DeepSpeed expects: forward it gathers as far ahead, through a buffer of a block's
    size, but nothing in the backward pass, and it keeps none.
    """
    width, student = compute_dtype(config).itemsize, costs.networks.trained[STUDENT]
    assert isinstance(student, Backbone)
    if engine_entry(config.engine).residency(config).handling == "casts":
        return _copies(config, student, width, size)
    if size == 1:
        return _Blocks({}, {}, {})
    sharded = {STUDENT: student, **(costs.networks.frozen if config.teacher.placement == "shard" else {})}
    backbones = {name: net for name, net in sharded.items() if isinstance(net, Backbone)}
    sizes = {name: _sizes(net) for name, net in backbones.items()}

    def whole(blocks: int) -> dict[str, int]:
        return {name: (blocks * block + root) * width for name, (block, root) in sizes.items()}

    trained, _ = _sizes(student, lambda p: p.requires_grad)
    reduced, buffer = trained * width, trained * _FP32
    if blocks := engine_entry(config.engine).residency(config).whole_blocks:
        again = {name for name in sizes if passes[name] > 1}
        ahead, alone, kept = whole(blocks + 1), whole(1), whole(blocks)
        once = {name: kept[name] for name in sizes.keys() - again}
        gathered = {name: ahead[name] for name in again}
        return _Blocks(
            gathered,
            {name: alone[name] for name in again},
            gathered,
            {name: min(1, (blocks + 1) / backbones[name].depth) for name in again},
            graph=once.pop(STUDENT, 0),
            reduced=reduced,
            always=buffer + sum(once.values()),
        )
    prefetched = max(config.fsdp2.forward_prefetch, config.fsdp2.backward_prefetch)
    runs = whole(2 + prefetched)
    return _Blocks(runs, runs, whole(prefetched), reduced=reduced + buffer)


def _copies(config: Config, student: Backbone, width: int, size: int) -> _Blocks:
    """Where a block's trained weights are cast when it is called.

    A graph keeps the copies, but of blocks that are called again in the backward pass. There gradients take their
    place one by one, and are cast together.
    """
    if width == _FP32:
        return _Blocks({}, {}, {})
    block, root = _sizes(student, lambda p: p.requires_grad)
    # Those of an only micro-batch are what stays.
    added, coming = (_FP32, 0) if config.accumulation(size) > 1 else (0, _FP32)
    copies = _Blocks({}, {}, {}, coming=block * coming, summed=block * (width + added))
    if called_again(config):
        runs = {STUDENT: (block + root) * width}
        return replace(copies, forward=runs, backward=runs)
    return replace(copies, graph=sum(p.numel() for p in trainable(student).values()) * width)


def _sizes(net: Backbone, counts: Callable[[nn.Parameter], bool] = lambda _: True) -> tuple[int, int]:
    """Parameters of the largest block, and of what is in none; those that count."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if counts(p))

    blocks = [count(block) for block in net.wrap_points()]
    return max(blocks), count(net) - sum(blocks)
