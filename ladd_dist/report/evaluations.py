"""The figure of the evaluations while a run trained: distances over iterations, against those of the teacher."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.evaluation.results import Estimate, Evaluated, Measures
from ladd_dist.methods.charts import Chart, Panel
from ladd_dist.report.charts import finish
from ladd_dist.report.style import FIGURE, GREY, ORANGE, SLATE

CHART = Chart(
    "evaluations",
    Panel("Excess distance", ()),
    Panel("Kernel distance", ()),
    "Curves of the student's distances to the guided teacher over iterations, with those of the undistilled teacher",
    "The student's averaged weights on held-out prompts, in each number of steps, with intervals of 95%. Levels are "
    "the undistilled teacher in as many steps: by Euler's method (slate), sampled as the student is (grey). Where "
    "pictures are too few for a Fréchet distance, both panels show the kernel distance.",
)
_LINES = ("-", "--", ":")
_Of = Callable[[Measures], Estimate]


def draw_evaluations(rows: list[Evaluated], folder: Path) -> list[Path]:
    """Write ``evaluations.png``; nothing where there are no rows."""
    if not rows:
        return []
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(6.4, 5), dpi=170, layout="constrained", facecolor="white")
        top, bottom = figure.subplots(2, 1, sharex=True)
        panels: list[tuple[Axes, Panel, _Of]] = [
            (top, CHART.top, lambda measures: measures.main.excess),
            (bottom, CHART.bottom, lambda measures: measures.main.kid),
        ]
        for axes, panel, of in panels:
            axes.set_title(panel.title, loc="left")
            _curves(axes, rows, of)
        finish(top, bottom)
        bottom.set_xlabel(f"iteration (features: {rows[-1].judge})")
        path = folder / f"{CHART.name}.png"
        figure.savefig(path)
    return [path]


def _curves(axes: Axes, rows: list[Evaluated], of: _Of) -> None:
    for name, style in zip((n for n in rows[-1].overall if n.startswith("student_")), cycle(_LINES), strict=False):
        steps = name.removeprefix("student_")
        found = [(row.iteration, of(row.overall[name])) for row in rows if name in row.overall]
        x, y = [at for at, _ in found], [number.value for _, number in found]
        axes.plot(x, y, style, color=ORANGE, lw=1.8, marker="o", ms=3, label=f"{steps} step" + "s" * (steps != "1"))
        sure = [(at, n.low, n.high) for at, n in found if n.low is not None and n.high is not None]
        if sure:
            at, low, high = (list(column) for column in zip(*sure, strict=True))
            axes.fill_between(at, low, high, color=ORANGE, alpha=0.12, lw=0)
        for rival, color in ((f"teacher_{steps}", SLATE), (f"teacher_{steps}_renoised", GREY)):
            if rival in rows[-1].overall:
                axes.axhline(of(rows[-1].overall[rival]).value, color=color, lw=1, ls=style)
    axes.axhline(0, color=GREY, lw=0.5)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, borderaxespad=0)
