"""What a rank needs at the most: its state, and what an iteration takes beside it, by part."""

from dataclasses import dataclass

from ladd_dist.config import Config
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT
from ladd_dist.models.backbone import Backbone
from ladd_dist.planning.activations import Peak, activation_peak
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.memory import state_of
from ladd_dist.planning.onlookers import onlookers

_FP32 = 4


@dataclass(frozen=True)
class Needs:
    """Bytes of one rank, the first, which holds most.

    Attributes:
        device: by part; ``gathered`` are whole blocks and their gradients on their way, ``workspace`` what CUDA,
            libraries and the allocator are given.
        host: by part; ``checkpoint copy`` is the writer's.
        peak: the activations' worst moment.
    """

    device: dict[str, int]
    host: dict[str, int]
    peak: Peak

    @property
    def total(self) -> int:
        """Of the device."""
        return sum(self.device.values())


def needs(config: Config, costs: Costs, size: int, samples: int, workspace: int) -> Needs:
    """Of a rank out of ``size`` with so many samples in a micro-batch."""
    state = costs.once("state", config, size, lambda: state_of(config, costs.networks, size))
    state = state + costs.once("onlookers", config, size, lambda: onlookers(config, costs.networks, size))
    peak = activation_peak(config, costs, samples)
    device = {kind: count for (place, kind), count in state.items() if place == "device" and count}
    host = {kind: count for (place, kind), count in state.items() if place == "host" and count}
    device["gathered"] = device.pop("gathered", 0) + costs.once(
        "gathered", config, size, lambda: _gathered(config, costs, size)
    )
    device |= {"activations": peak.bytes, "workspace": workspace}
    copied = ("masters", "moments", "ema")
    host["checkpoint copy"] = sum(count for (_, kind), count in state.items() if kind in copied)
    return Needs(device, host, peak)


def _gathered(config: Config, costs: Costs, size: int) -> int:
    """Whole blocks at a time, and the gradients of two on their way to their shards.

    FSDP2 holds the block that runs and the next one, and the parameters outside of blocks; ZeRO-3 three blocks at
    most. One process casts the trained weights for every pass, and its graph keeps the copies.
    """
    width = compute_dtype(config).itemsize
    student = costs.networks.trained[STUDENT]
    assert isinstance(student, Backbone)
    if engine_entry(config.engine).launcher == "python":
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        return trained * width if width < _FP32 else 0
    if size == 1:
        return 0
    ahead = 3 if config.engine == "zero3" else 2 + max(config.fsdp2.forward_prefetch, config.fsdp2.backward_prefetch)
    block, root = _sizes(student)
    reduced = 2 * block * (width + _FP32)
    whole = ahead * block + root
    for frozen in costs.networks.frozen.values():
        if config.teacher.placement == "shard" and isinstance(frozen, Backbone):
            block, root = _sizes(frozen)
            whole += ahead * block + root
    return whole * width + reduced


def _sizes(net: Backbone) -> tuple[int, int]:
    """Parameters of the largest block, and of what is in none."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in net.wrap_points()]
    return max(blocks), sum(p.numel() for p in net.parameters()) - sum(blocks)
