"""Memory against time: what it costs and gives to recompute student and teacher, each in every way."""

from collections.abc import Iterator

from ladd_dist.config import Config
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.activations import HOW, checkpointed
from ladd_dist.planning.advice import recomputations, with_overrides
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.plan import plan

_COLUMNS = "student", "teacher", "kept, GB per sample", "memory, GB", "recomputed, TFLOP per sample", "s per sample"


def trade(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> Iterator[str]:
    """A Markdown table; all but recomputation is as configured.

    Kept are the graphs between forward and backward passes; memory is a GPU's at the worst moment, ``workspace``
    included; seconds are a GPU's.

    Raises:
        LaddError: if the configuration cannot run on so many ranks, or not in bf16.
    """
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|---|---|--:|--:|--:|--:|"
    for overrides in recomputations(config):
        if changed := with_overrides(config, overrides):
            yield f"| {' | '.join(_row(changed, cluster, costs, workspace))} |"


def _row(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> list[str]:
    made = plan(config, cluster, costs, workspace)
    kept = flops = 0.0
    for passed in method_of(config).passes(config):
        if passed.network != "heads" and passed.gradient != "none":
            cost = costs.of(
                passed, checkpointed(config, passed.network), 1, engine_entry(config.engine).residency(config)
            )
            kept += cost.kept
            flops += cost.backward.flops - costs.of(passed, False).backward.flops
    total = made.needs.total / 1e9
    return [
        HOW[checkpointed(config, "student")],
        HOW[checkpointed(config, "teacher")],
        f"{kept / 1e9:.1f}",
        f"{total:.1f}" if made.fits else f"{total:.1f}, does not fit",
        f"{flops / 1e12:.1f}",
        f"{made.time.seconds / made.samples / made.micro_batches:.3f}",
    ]
