"""The numbers of curves: read from the rows of a run, smoothed, thinned for drawing, held to healthy bands."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ladd_dist.methods.charts import Chart, Curve, Panel
from ladd_dist.training.tracking import Row

Rows = list[Row]

_POINTS = 1000
"""About as many of a curve are drawn as its axes have pixels: a long run costs no more than a short one."""
_RECENT = 10
"""Rows at least whose mean is held to a band: single ones leave it."""


def entries(rows: Rows, metric: str) -> int:
    """Entries of a metric that has one by block; rows whose iterations were all skipped do not show it."""
    return max(len(row.get(metric, ())) for row in rows)


def series(rows: Rows, key: str, entry: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Iterations of the rows that have a metric, and its values: of one entry if it has several."""
    kept = [row for row in rows if key in row]
    values = [row[key] if entry is None else row[key][entry] for row in kept]
    return np.array([row["iteration"] for row in kept]), np.array(values, dtype=float)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred, over 3% of the rows; the window is cut at both ends."""
    half, place = len(values) * 3 // 200, np.arange(len(values))
    sums = np.concatenate([[0], np.cumsum(values)])
    first, end = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """About `_POINTS` points of a curve: both ends, and of every stretch its lowest and its highest."""
    if len(x) <= _POINTS:
        return x, y
    edges = np.linspace(0, len(x), _POINTS // 2 + 1).astype(int)
    extremes = (start + pick(y[start:end]) for start, end in pairwise(edges) for pick in (np.argmin, np.argmax))
    kept = np.unique([0, *extremes, len(x) - 1])
    return x[kept], y[kept]


def departures(rows: Rows, charts: Sequence[Chart]) -> list[str]:
    """What is outside of its healthy band now, and what that means, in a sentence for each curve."""
    found = []
    for panel in (panel for chart in charts for panel in chart.panels if panel.band):
        for curve in panel.curves:
            each: list[int | None] = list(range(entries(rows, curve.metric))) if panel.by_block else [None]
            for y in (series(rows, curve.metric, entry)[1] for entry in each):
                lately = y[-max(_RECENT, len(y) * 3 // 100) :] * curve.scale
                found += _departure(panel, curve, float(lately.mean())) if len(y) else []
    return found


def _departure(panel: Panel, curve: Curve, value: float) -> list[str]:
    assert panel.band is not None
    band = panel.band
    if band.low <= value <= band.high:
        return []
    name = f"{panel.title}, {curve.label}" if curve.label else panel.title
    side, meaning = ("below", band.below) if value < band.low else ("above", band.above)
    return [f"{name}: {value:.3g} is {side} the healthy {band.low:g} to {band.high:g}: {meaning}"]
