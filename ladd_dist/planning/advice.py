"""What to set: of all ways to run a configuration on a cluster the fastest that fits, or what would make one fit."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from operator import le

from ladd_dist.config import Config
from ladd_dist.config.yaml import override
from ladd_dist.engines.settings import check_settings
from ladd_dist.errors import LaddError
from ladd_dist.planning.activations import HOW
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.plan import Plan, plan

_SPARE = 1.01
"""A simpler way is as good as one that is less than a hundredth faster."""
_LEAST_FIRST = [str(what).lower() for what in HOW]
_MOST_GPUS, _MOST_SAMPLES = 4096, 64

Overrides = dict[str, str]
"""Keys of the configuration and their values, as a command line gives them."""


@dataclass(frozen=True)
class Advice:
    """What to change of the configuration, and what it then comes to.

    Attributes:
        overrides: only those that differ from the configuration's.
        plan: what comes of it; on a larger cluster if none fits on the given one.
        remedy: what it takes where nothing fits as it is, in words; empty otherwise.
    """

    overrides: Overrides
    plan: Plan
    remedy: str = ""


def advise(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> Advice:
    """The fastest way that fits on the cluster.

    If none does, the fastest with 8-bit moments or the average in host memory; or else the first that does of: state
    in host memory; more nodes.

    Raises:
        LaddError: if nothing fits, naming what comes nearest; or if no way to run it is known at all.
    """
    if found := _best(config, cluster, costs, workspace):
        return found
    if remedied := list(_remedied(config, cluster, costs, workspace, _REMEDIES)):
        fastest = min(advice.plan.time.seconds for advice in remedied)
        return next(advice for advice in remedied if advice.plan.time.seconds <= fastest * _SPARE)
    if offloaded := next(_remedied(config, cluster, costs, workspace, _OFFLOADED), None):
        return offloaded
    larger = cluster
    while larger.gpus * 2 <= _MOST_GPUS:
        larger = replace(larger, nodes=larger.nodes * 2)
        if found := _best(config, larger, costs, workspace):
            words = f"{larger.gpus} GPUs ({larger.nodes} nodes of {larger.per_node}) at the least, in doublings"
            return replace(found, remedy=words)
    least = min(_plans(config, cluster, costs, workspace), key=lambda p: p[1].needs.total, default=None)
    if least is None:
        raise LaddError(_why_not(config, cluster, costs, workspace))
    needed, there = least[1].needs.total / 1e9, cluster.card.memory / 1e9
    raise LaddError(
        f"nothing fits on a {cluster.card.name}: {needed:.0f} GB are needed at the least, of {there:.0f}: "
        "take smaller synthesis.buckets, student.lora, or a GPU with more memory"
    )


_REMEDIES: Mapping[str, Overrides] = {
    "8-bit moments of the student's AdamW": {"student_optimizer.state": "8bit"},
    "the average in host memory": {"train.ema_device": "cpu"},
    "8-bit moments, and the average in host memory": {"student_optimizer.state": "8bit", "train.ema_device": "cpu"},
}
"""In the order of what they change, if they are as fast."""
_OFFLOADED: Mapping[str, Overrides] = {
    "masters and moments in host memory, whose time is not predicted": {
        "engine": "zero3",
        "zero3.offload": "optimizer",
    },
    "all state in host memory, whose time is not predicted": {"engine": "zero3", "zero3.offload": "all"},
}
"""In the order of what they cost."""


def _remedied(
    config: Config, cluster: Cluster, costs: Costs, workspace: int, remedies: Mapping[str, Overrides]
) -> Iterator[Advice]:
    """The best with each of them that makes something fit."""
    for words, changes in remedies.items():
        with_it = with_overrides(config, changes)
        if with_it and (found := _best(with_it, cluster, costs, workspace)):
            yield Advice({**changes, **found.overrides}, found.plan, words)


def _why_not(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> str:
    try:
        plan(config, cluster, costs, workspace)
    except LaddError as error:
        return str(error)
    return f"train.global_batch={config.train.global_batch} cannot be shared by {cluster.gpus} GPUs: raise it"


def _best(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> Advice | None:
    fitting = [(changes, made) for changes, made in _plans(config, cluster, costs, workspace) if made.fits]
    if not fitting:
        return None
    fastest = min(made.time.seconds for _, made in fitting)
    good = [(changes, made) for changes, made in fitting if made.time.seconds <= fastest * _SPARE]
    changes, made = min(good, key=lambda found: len(found[0]))
    return Advice(changes, made)


def _plans(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> Iterator[tuple[Overrides, Plan]]:
    """As configured, and every other way. Recomputation only takes time: more of it than what fits is not tried."""
    with suppress(LaddError):
        yield {}, plan(config, cluster, costs, workspace)
    for way in _ways(config, cluster):
        fitting: list[tuple[int, ...]] = []
        for recomputed in recomputations(config):
            much = tuple(map(_LEAST_FIRST.index, recomputed.values()))
            changes = {key: value for key, value in {**way, **recomputed}.items() if _value(config, key) != value}
            less_fits = any(all(map(le, less, much)) for less in fitting)
            if not changes or (less_fits and recomputed.keys() & changes):
                continue
            changed = with_overrides(config, changes)
            if changed is None:
                continue
            try:
                made = plan(changed, cluster, costs, workspace)
            except LaddError:  # not a way to run it
                continue
            if made.fits:
                fitting.append(much)
            yield changes, made


def recomputations(config: Config) -> Iterator[Overrides]:
    """What may be recomputed of student and teacher, from nothing to all."""
    for student, teacher in product(_LEAST_FIRST, _LEAST_FIRST if config.builds_teacher else _LEAST_FIRST[:1]):
        yield {"student.activation_checkpointing": student, "teacher.activation_checkpointing": teacher}


def _ways(config: Config, cluster: Cluster) -> Iterator[Overrides]:
    """Ways to run it, recomputation apart."""
    offloads = config.engine == "zero3" and config.zero3.offload != "none"
    engines = ["zero3"] if offloads else ["fsdp2", "zero3"] if cluster.gpus > 1 else ["local"]
    placements = ["replicate", "shard"] if config.builds_teacher and cluster.gpus > 1 else ["replicate"]
    share = config.train.global_batch // cluster.gpus
    micro = [count for count in range(1, min(share, _MOST_SAMPLES) + 1) if share % count == 0]
    for engine, placement, samples in product(engines, placements, micro):
        for replicas in _replicas(config, cluster) if engine == "fsdp2" else [1]:
            wanted = {
                "engine": engine,
                "fsdp2.replicas": str(replicas),
                "teacher.placement": placement,
                "train.micro_batch": str(samples),
            }
            if config.method.trains_heads:
                wanted["method.fake_pass"] = "shared" if samples == share else "two_pass"
            yield wanted


def _replicas(config: Config, cluster: Cluster) -> list[int]:
    """Copies of the sharded network: one, one on every so many nodes, and as many as configured."""
    found = {1, *(cluster.nodes // 2**n for n in range(4) if cluster.nodes % 2**n == 0)}
    return sorted(found | ({config.fsdp2.replicas} if cluster.gpus % config.fsdp2.replicas == 0 else set()))


def _value(config: Config, key: str) -> str:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return str(found).lower() if isinstance(found, bool) else str(found)


def with_overrides(config: Config, changes: Overrides) -> Config | None:
    """The configuration with other values, or None if they do not go together."""
    whole = config.model_dump()
    for key, value in changes.items():
        override(whole, f"{key}={value}")
    try:
        changed = Config.model_validate(whole)
        check_settings(changed)
    except (ValueError, LaddError):
        return None
    return changed
