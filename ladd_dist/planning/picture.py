"""A plan as a picture: what fills a GPU's memory, and what an iteration waits for."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.planning.plan import Plan

_COLOURS = (
    "#4a6785",
    "#c2410c",
    "#7b8691",
    "#8fb0cf",
    "#e0a36b",
    "#3f7f5f",
    "#b7bec5",
    "#7a5195",
    "#d4c14a",
    "#5fa8a0",
    "#a14a5e",
    "#33383d",
    "#c9a9d6",
)


def draw(plans: dict[str, Plan], path: Path) -> None:
    """Two panels with a bar for each plan, by its name."""
    figure = Figure((10, 2.6 + 0.5 * len(plans)), dpi=150, layout="constrained", facecolor="white")
    memory, time = figure.subplots(1, 2)
    room = next(iter(plans.values())).cluster.card
    parts = {name: {k: v / 1e9 for k, v in plan.needs.device.items()} for name, plan in plans.items()}
    _bars(memory, parts)
    memory.axvline(room.memory / 1e9, color="black", lw=1.2, ls="--")
    memory.set_title(f"Memory of a GPU in GB (line: {room.name})", loc="left", fontsize=10, fontweight="bold")
    # These add up; the network's collectives run beside all but the last.
    parts_of_time = {
        "arithmetic": "arithmetic",
        "memory": "memory",
        "waiting": "waiting for the host",
        "alone": "alone",
    }
    seconds = {
        name: {words: getattr(p.time, part) for part, words in parts_of_time.items()} for name, p in plans.items()
    }
    _bars(time, seconds)
    networks = [p.time.network for p in plans.values()]
    time.plot(networks, range(len(plans)), "D", color="black", ms=5, label="network, beside them")
    time.set_title("Seconds of an iteration, predicted", loc="left", fontsize=10, fontweight="bold")
    for axes, columns in ((memory, 4), (time, 3)):
        axes.legend(fontsize=7.5, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _bars(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    """A stacked bar for each row; a part has the same colour in all of them."""
    names = list(dict.fromkeys(part for row in rows.values() for part in row))
    left = [0.0] * len(rows)
    for number, part in enumerate(names):
        widths = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(range(len(rows)), widths, left=left, height=0.6, color=_COLOURS[number % len(_COLOURS)], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
