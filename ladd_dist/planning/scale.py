"""How a run grows with its cluster, on paper: what `advise` finds at every size, beside what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from ladd_dist.config import Config
from ladd_dist.errors import LaddError
from ladd_dist.planning.activations import HOW, checkpointed
from ladd_dist.planning.advice import Advice, advise
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import MeasuredRun

SIZES = (1, 8, 64, 512, 4096)
"""Numbers of GPUs, about."""
_MILLION = 1e6
_COLUMNS = (
    "GPUs", "global batch", "settings", "memory, GB", "iteration, s", "bound by", "network, s", "MFU", "samples/s",
    "GPU-hours per million samples",
)  # fmt: skip
_MARKS = {"compute": "o", "memory": "s", "host": "P", "network": "D", "data": "^"}


@dataclass(frozen=True)
class Row:
    """One size; ``why_not`` says what it would take where nothing fits."""

    gpus: int
    advice: Advice | None
    why_not: str = ""

    @property
    def cost(self) -> float | None:
        """GPU-hours for a million samples."""
        if self.advice is None:
            return None
        return _cost(self.advice.plan.samples_per_second, self.gpus)


def _cost(samples_per_second: float, gpus: int) -> float:
    return _MILLION / samples_per_second / 3600 * gpus


def scale(config: Config, cluster: Cluster, costs: Costs, workspace: int) -> Iterator[Row]:
    """Every size, in whole nodes; the global batch stays the configuration's, but that GPUs have as many samples."""
    for about in SIZES:
        per_node = min(about, cluster.per_node)
        here = replace(cluster, per_node=per_node, nodes=about // per_node)
        size = here.gpus
        batch = -(-config.train.global_batch // size) * size
        train = config.train.model_copy(update={"global_batch": batch})
        try:
            found = advise(config.model_copy(update={"train": train}), here, costs, workspace)
        except LaddError as why:
            yield Row(size, None, str(why))
            continue
        fits = found.plan.cluster.gpus == size
        yield Row(size, found) if fits else Row(size, None, f"does not fit, but on {found.remedy}")


def markdown(rows: Sequence[Row], measured: MeasuredRun | None = None) -> list[str]:
    """A table; what was measured of one GPU comes first."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|--:|--:|---|--:|--:|---|--:|--:|--:|--:|"]
    if measured:
        lines.append(f"| 1 | {_measured_cells(measured)} |")
    return lines + [f"| {row.gpus:,} | {_cells(row)} |" for row in rows]


def _measured_cells(run: MeasuredRun) -> str:
    step, rate = run.step, run.samples_per_second
    return (
        f"{run.batch:,} | **measured**: {Path(step.config).name}, {step.setting} | {step.peak / 1e9:.0f} | "
        f"{run.seconds:.3g} | | | {run.mfu:.0%} | {rate:.4g} | {_cost(rate, 1):.0f}"
    )


def _cells(row: Row) -> str:
    if row.advice is None or row.cost is None:
        return f"| {row.why_not} | | | | | | |"
    plan = row.advice.plan
    time = plan.time
    return (
        f"{plan.config.train.global_batch:,} | {_settings(row.advice)} | {plan.needs.total / 1e9:.0f} | "
        f"{time.seconds:.3g} | {time.bound} | {time.network:.3g} | {plan.mfu:.0%} | {plan.samples_per_second:.4g} | "
        f"{row.cost:.0f}"
    )


def _settings(advice: Advice) -> str:
    plan, config = advice.plan, advice.plan.config
    words = [
        config.engine + (f" x {config.fsdp2.replicas}" if config.fsdp2.replicas > 1 else ""),
        f"{plan.micro_batches} x {plan.samples} samples",
        _recomputed(config),
    ]
    if plan.cluster.gpus > 1:
        words.append(f"teacher {'sharded' if config.teacher.placement == 'shard' else 'whole'}")
    return ", ".join(words + ([advice.remedy] if advice.remedy else []))


def _recomputed(config: Config) -> str:
    """Such as ``student recomputed selectively and teacher recomputed``."""
    how = {name: checkpointed(config, name) for name in ("student", "teacher")}
    if len(set(how.values())) == 1:
        how = {"student and teacher": how["student"]}
    return " and ".join(f"{name} {HOW[what]}" for name, what in how.items() if what) or "nothing recomputed"


def draw_scale(by_card: Mapping[str, Sequence[Row]], measured: Mapping[str, MeasuredRun], path: Path) -> None:
    """Cost and MFU over the number of GPUs, a line for each card; marks say what bounds, and stars are measured."""
    figure = Figure((10, 4.2), dpi=150, layout="constrained", facecolor="white")
    cost, share = figure.subplots(1, 2)
    for number, (name, rows) in enumerate(by_card.items()):
        for axes, values in (
            (cost, [r.cost for r in rows]),
            (share, [r.advice and 100 * r.advice.plan.mfu for r in rows]),
        ):
            there = [
                (row, value) for row, value in zip(rows, values, strict=True) if row.advice and value is not None
            ]
            gpus, drawn = [row.gpus for row, _ in there], [value for _, value in there]
            axes.plot(gpus, drawn, color=f"C{number}", lw=1.4, label=name if axes is cost else None)
            for row, value in there:
                assert row.advice is not None
                axes.plot([row.gpus], [value], _MARKS[row.advice.plan.time.bound], color=f"C{number}", ms=6)
        if run := measured.get(name):
            for axes, value in ((cost, _cost(run.samples_per_second, 1)), (share, 100 * run.mfu)):
                axes.plot([1], [value], "*", color=f"C{number}", mec="black", ms=13)
    for bound, mark in _MARKS.items():
        share.plot([], [], mark, color="black", label=f"bound by {bound}", ms=5)
    if measured:
        cost.plot([], [], "*", color="white", mec="black", label="measured", ms=11)
    for axes, title in ((cost, "GPU-hours per million samples, predicted"), (share, "MFU (%), predicted")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("GPUs")
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ec", lw=0.8)
    cost.legend(fontsize=8, frameon=False, ncols=3, loc="lower left")
    share.legend(fontsize=8, frameon=False, ncols=3, loc="lower left")
    figure.savefig(path)
