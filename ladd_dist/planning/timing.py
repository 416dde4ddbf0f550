"""How long an iteration takes on a cluster, predicted: by arithmetic, memory, the host's launches, links and data."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ladd_dist.config import Config
from ladd_dist.engines.ema import average_place
from ladd_dist.engines.entry import MemoryKind
from ladd_dist.engines.ranges import whole
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.passes import Pass
from ladd_dist.methods.registry import method_of
from ladd_dist.models.backbone import Backbone
from ladd_dist.planning.activations import called_again, checkpointed
from ladd_dist.planning.cards import FLOAT8_SPEED, HOST_AVERAGE, REACHED
from ladd_dist.planning.cluster import Cluster, Group, Sent, collective, sharding_groups
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.counting import Work
from ladd_dist.planning.memory import adamw_moments, in_eight_bits
from ladd_dist.planning.traffic import expected, gathered_elements, gathered_late, sharded

Bound = Literal["compute", "memory", "host", "network", "data"]
_BF16, _FP32 = 2, 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one iteration.

    Attributes:
        arithmetic: matrix products, convolutions and attention.
        memory: all other operators, the optimizer's update, and the average unless it is in host memory.
        waiting: for the host, where it launches a pass's operators no faster than the GPU runs them.
        network: collectives that run beside the above.
        alone: collectives that nothing runs beside: the heads' gradients, the first block's gather, and under ZeRO-3
            those of a network's passes that DeepSpeed does not expect.
        data: reading the samples, beside all of that.
        average: moving an average in host memory, beside all of that.
        sent: the collectives' bytes of one GPU.
        model_flops: of one GPU, what is computed twice counted once.
        launches: operators that the host launches for passes, those of compiled blocks apart.
        host: seconds that it takes for those.
    """

    arithmetic: float
    memory: float
    waiting: float
    network: float
    alone: float
    data: float
    average: float
    sent: Sent
    model_flops: float
    launches: float
    host: float

    @property
    def computing(self) -> float:
        """On the GPU, waiting included."""
        return self.arithmetic + self.memory + self.waiting

    @property
    def seconds(self) -> float:
        """What runs beside the computation counts where it is slower."""
        return max(self.computing, self.network, self.data, self.average) + self.alone

    @property
    def bound(self) -> Bound:
        """What would have to be faster."""
        times: dict[Bound, float] = {
            "compute": self.computing,
            "network": self.network,
            "data": self.data,
            "host": self.average,
        }
        slowest = max(times, key=lambda bound: times[bound])
        if slowest != "compute":
            return slowest
        if self.host > self.arithmetic + self.memory:
            return "host"
        return "memory" if self.memory > self.arithmetic else "compute"


def step_time(config: Config, costs: Costs, cluster: Cluster, samples: int, micro_batches: int) -> StepTime:
    """Of an iteration over so many micro-batches on each GPU."""
    card = cluster.card
    arithmetic = memory = waiting = model_flops = launches = 0.0
    for passed in method_of(config).passes(config):
        cost = costs.of(passed, checkpointed(config, passed.network), samples)
        once = costs.of(passed, False, samples)
        model_flops += (once.forward + once.backward).flops
        engines = _by_engine(config, costs, passed, micro_batches, cluster.gpus)
        for work, own in zip((cost.forward, cost.backward), engines, strict=True):
            compiled = _compiled(config, passed)
            by_arithmetic, by_memory = _gpu_seconds(passed, work, own, cluster, compiled)
            launched = (0 if compiled else work.launches) + own.launches
            arithmetic += by_arithmetic
            memory += by_memory
            waiting += max(0.0, launched * cluster.host - by_arithmetic - by_memory)
            launches += launched
    sent, alone = _collectives(config, costs, cluster, micro_batches)
    updated = costs.once("update", config, cluster.gpus, lambda: _update_bytes(config, costs, cluster.gpus))
    reads = 2 if method_of(config).mismatched_prompts(config) else 1  # another sample with each
    read = samples * micro_batches * cluster.gpus * costs.sample_bytes * reads
    return StepTime(
        arithmetic * micro_batches,
        memory * micro_batches + updated["device"] / (card.bandwidth * REACHED.memory),
        waiting * micro_batches,
        sent.seconds,
        alone.seconds,
        read / cluster.storage if cluster.storage else 0.0,
        updated["host"] / HOST_AVERAGE,
        sent + alone,
        model_flops * micro_batches,
        launches * micro_batches,
        launches * micro_batches * cluster.host,
    )


def _gpu_seconds(passed: Pass, work: Work, engines: Work, cluster: Cluster, compiled: bool) -> tuple[float, float]:
    """Of a pass in one direction: arithmetic, and all that is read and written."""
    if passed.network == "heads":
        return work.flops / (cluster.card.bf16 * REACHED.heads), 0.0
    bandwidth = cluster.card.bandwidth
    operators = work.fused / REACHED.casts if compiled else work.moved / REACHED.operators
    return arithmetic_seconds(work, cluster), (operators + engines.moved / REACHED.casts) / bandwidth


def _compiled(config: Config, passed: Pass) -> bool:
    """Whether a pass launches a few operators of many; `auto` compiles on a CPU alone."""
    if passed.network == "heads":
        return False
    return (config.student if passed.network == STUDENT else config.teacher).compile is True


def _by_engine(config: Config, costs: Costs, passed: Pass, micro_batches: int, size: int) -> tuple[Work, Work]:
    """What the engine does with weights and gradients around a pass, forward and backward.

    Bytes are DeepSpeed's as FSDP2's. It launches one operator for each tensor that it gathers, and two more for its
    gradient, about: its hooks run at layers, its layers add biases by themselves, and small tensors stay gathered.
    """
    handling, own = engine_entry(config.engine).residency(config).handling, passed.network == STUDENT
    sharded = own or (passed.network != "heads" and config.teacher.placement == "shard")
    if handling == "none" or not sharded or (handling == "casts" and not own):
        return Work(), Work()
    units, weights, trained = _units(costs, passed)
    gradients, before = passed.gradient == "weights", 1 - 1 / micro_batches
    if handling == "casts":
        cast = Work(moved=(_FP32 + _BF16) * sum(trained), launches=units)
        added = Work(moved=3 * _FP32 * sum(trained), launches=units) * before
        again = cast if called_again(config) else Work()
        return cast, again + cast + added if gradients else Work()
    ranks, tensors = size // config.fsdp2.replicas, handling == "tensors"
    # Each shard is copied into a buffer, and what was gathered out of one.
    gathered = Work(moved=2 * _BF16 * sum(weights) * (1 + 1 / ranks), launches=len(weights) if tensors else 3 * units)
    if trained and not tensors:
        gathered += Work(moved=(_FP32 + _BF16) * sum(trained) / ranks, launches=units)
    if not gradients:
        return gathered, Work() if passed.gradient == "none" else gathered
    reduced = Work(moved=(_BF16 + _FP32) * sum(trained), launches=len(trained) if tensors else 2 * units)
    added = Work(moved=3 * _FP32 * sum(trained) / ranks, launches=len(trained)) * (1 if tensors else before)
    if config.fsdp2.replicas > 1:  # blocks' sums go on, and are averaged between replicas with the last micro-batch
        added = Work(moved=3 * _FP32 * sum(trained) / ranks, launches=units) * before + Work(
            launches=units / micro_batches
        )
    return gathered, gathered + reduced + added


def _parts(net: nn.Module) -> int:
    """Blocks and what is outside of them."""
    assert isinstance(net, Backbone)
    return net.depth + 1


def _units(costs: Costs, passed: Pass) -> tuple[int, list[int], list[int]]:
    """What is handled at once; elements of each weight, and of each trained one."""
    net = {**costs.networks.trained, **costs.networks.frozen}[passed.network]
    sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    return _parts(net), [size for size, _ in sizes], [size for size, trains in sizes if trains]


def arithmetic_seconds(work: Work, cluster: Cluster) -> float:
    """Of a backbone's matrix products and attention."""
    peak = cluster.card.bf16
    products = work.matmul + work.float8 / FLOAT8_SPEED
    return products / (peak * REACHED.matmul) + work.attention / (peak * REACHED.attention)


def _collectives(config: Config, costs: Costs, cluster: Cluster, micro_batches: int) -> tuple[Sent, Sent]:
    """Those that run beside the computation, and the others; bytes are `traffic.expected`'s."""
    if cluster.gpus == 1:
        return Sent(), Sent()
    method, student = method_of(config), costs.networks.trained[STUDENT]
    elements, trained = costs.once("elements", config, cluster.gpus, lambda: _elements(config, costs, cluster.gpus))
    moved = expected(config, elements, trained, micro_batches)
    shard, alike = sharding_groups(cluster, config.fsdp2.replicas)
    runs, backbones = method.forward_backward(config), {**costs.networks.trained, **costs.networks.frozen}
    gathers = sum(runs[name] * _parts(backbones[name]) for name in sharded(config)) * micro_batches
    reduces = _parts(student) * micro_batches
    late = gathered_late(config, elements) * micro_batches / moved["all_gather"]
    beside = (
        collective(cluster, shard, moved["all_gather"] * (1 - late), gathers * (1 - late))
        + collective(cluster, shard, moved["reduce_scatter"], reduces)
        + collective(cluster, alike, trained * _FP32 / shard.size, _parts(student), rounds=2)
    )
    waited = collective(cluster, shard, moved["all_gather"] * late, gathers * late)
    first = collective(cluster, shard, moved["all_gather"] / gathers, 1)
    ranks = Group(cluster.per_node, cluster.nodes)
    heads = collective(cluster, ranks, moved["all_reduce"], 1, rounds=2)
    return beside, waited + Sent(first.seconds) + heads


def _elements(config: Config, costs: Costs, size: int) -> tuple[dict[str, int], int]:
    """Of every network as it is gathered, and of what is trained of the student."""
    layout, networks = engine_entry(config.engine).layout(config, size, 0), costs.networks
    everywhere = set(method_of(config).OPTIMIZERS) - {STUDENT}
    elements = {
        name: gathered_elements(net.parameters(), whole if name in everywhere else layout)
        for name, net in {**networks.trained, **networks.frozen}.items()
    }
    trained = (p for p in networks.trained[STUDENT].parameters() if p.requires_grad)
    return elements, gathered_elements(trained, layout)


def _update_bytes(config: Config, costs: Costs, size: int) -> Counter[MemoryKind]:
    """In which memory AdamW reads and writes weights, gradients and moments, and where the average is moved.

    Of one in host memory only its own bytes count, as `HOST_AVERAGE` has it.
    """
    layout = engine_entry(config.engine).layout(config, size, 0)
    total: Counter[MemoryKind] = Counter()
    for name, net in costs.networks.trained.items():
        settings = getattr(config, method_of(config).OPTIMIZERS[name])
        places = layout if name == STUDENT else whole
        tensors = [places(p.shape).held for p in net.parameters() if p.requires_grad]
        # A gradient that is the first moment is written, too.
        moved = 3 if "exp_avg" in settings.moments else 4
        total["device"] += _FP32 * moved * sum(tensors) + 2 * adamw_moments(tensors, settings)
        # For 8 bits weights and gradients are copied into chunks, and weights back.
        total["device"] += _FP32 * 6 * in_eight_bits(tensors, settings)
        if name == STUDENT and average_place(config) == "host":
            total["host"] += _FP32 * sum(tensors)
        elif name == STUDENT:
            total["device"] += _FP32 * 3 * sum(tensors)
    return total
