"""What a study has found: read from its runs, as JSON, as a table and as a figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.errors import LaddError
from ladd_dist.report.style import GREY, ORANGE
from ladd_dist.studies.plan import Run
from ladd_dist.studies.study import Study

Values = dict[str, dict[str, dict[int, float]]]
"""Of every variant and measure, by seed."""
_ACROSS = 4
"""Panels side by side, at most."""


@dataclass
class Outcome:
    """The runs that are done, and why others are not; ``made`` says how and when."""

    study: Study
    made: str
    values: Values = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, run: Run) -> None:
        """Read a run that is done.

        Raises:
            LaddError: if its results have no such measure.
        """
        sets = {scored["name"]: scored for scored in json.loads(run.task.done.read_text(encoding="utf-8"))["sets"]}
        for name, where in self.study.measures.items():
            value = _look_up(sets, where, run.task.done)
            if value is not None:
                self.values.setdefault(run.variant, {}).setdefault(name, {})[run.seed] = value

    def write(self, folder: Path) -> None:
        """``study.json``, ``study.md`` and ``study.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        tree = {"made": self.made, **self.study.model_dump(), "values": self.values, "failed": self.failed}
        (folder / "study.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        (folder / "study.md").write_text(self.table(), encoding="utf-8")
        draw(self.study, self.values, folder / "study.png")

    def table(self) -> str:
        """Markdown: means, and in brackets the lowest and highest seed."""
        measures = list(self.study.measures)
        head = ["variant", *measures]
        rows = [
            [name, *(_cell(self.values.get(name, {}).get(m, {})) for m in measures)] for name in self.study.variants
        ]
        lines = [head, ["---"] * len(head), *rows]
        failed = "".join(f"\n- {name} failed: {why}" for name, why in self.failed.items())
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.study.claim}\n\n{table}\n\n{self.made}\n{failed}"


def _look_up(sets: Mapping[str, Any], where: str, file: Path) -> float | None:
    found: Any = sets
    for key in where.split("."):
        if found is None:
            return None
        if not isinstance(found, dict) or key not in found:
            known = ", ".join(found) if isinstance(found, dict) else "none"
            raise LaddError(f"measures: '{where}' is not in {file}: there is no '{key}', known there: {known}")
        found = found[key]
    if found is not None and not isinstance(found, int | float):
        raise LaddError(f"measures: '{where}' is no number in {file}")
    return found


def _cell(by_seed: Mapping[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return "-"
    return f"{fmean(values):.3g}" + (f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else "")


def draw(study: Study, values: Values, path: Path) -> None:
    """A panel for every measure: a dot for each seed, a line through all of a variant's, a mark at their mean.

    Panels of one measure of several sets, such as 4 steps and 1 step, have one axis.
    """
    names, count = list(study.variants), len(study.measures)
    lines = -(-count // _ACROSS)
    across = -(-count // lines)
    size = 3 + 3 * across, lines * (1.2 + 0.34 * len(names))
    figure = Figure(size, dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(lines, across, sharey=True, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    same: dict[str, Axes] = {}
    for axes, (measure, where) in zip(panels, study.measures.items(), strict=False):
        if (first := same.setdefault(where.partition(".")[2], axes)) is not axes:
            axes.sharex(first)
        for row, name in enumerate(names):
            seeds: Sequence[float] = list(values.get(name, {}).get(measure, {}).values())
            if seeds:
                axes.plot([min(seeds), max(seeds)], [row, row], color=GREY, lw=1.2)
                axes.plot(seeds, [row] * len(seeds), "o", color=ORANGE, ms=4, alpha=0.5)
                axes.plot([fmean(seeds)], [row], "|", color=ORANGE, ms=13, mew=2)
        axes.set_title(measure, loc="left", fontsize=9.5, fontweight="bold")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e6e9ec", lw=0.8)
        axes.set_axisbelow(True)
    figure.savefig(path)
