"""Markdown table and roofline plot out of the JSON rows."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_HEAD = (
    "| scope | direction | shape | provider | ms (p20, p50, p80) | second round | TFLOP/s | GB/s | of floor "
    "| error | peak MiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def write(rows: list[Row], folder: Path, name: str) -> list[Path]:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` of measured rows; returns the paths.

    Raises:
        ValueError: for no rows, since a table of nothing would look like a result.
    """
    if not rows:
        raise ValueError("no rows were measured")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png")]
    paths[0].write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(table(rows, name), encoding="utf-8")
    _plot(rows, paths[2])
    return paths


def table(rows: list[Row], name: str) -> str:
    """The Markdown page: what it was measured on, then a line per provider, fastest first within a case."""
    first = rows[0]
    title = (
        f"# {name}\n\n{first['gpu']}, driver {first['driver']}, torch {first['torch']}, triton {first['triton']}, "
        f"cuDNN {first['cudnn']}, commit {first['commit']}, {first['date']}. Ceilings of the same run: "
        f"{first['matmul_tflops']:.0f} TFLOP/s bf16 matmul, {first['copy_gbps']:.0f} GB/s copy. "
        "A difference below the spread of the two rounds is noise.\n"
    )
    return "\n".join([title, _HEAD, *(_line(*pair) for pair in _pairs(rows)), ""])


def _pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """The two rounds of every provider, ordered by case and speed."""

    def case(row: Row) -> tuple[str, ...]:
        return row["op"], row["scope"], row["direction"], json.dumps(row["shape"]), row["dtype"]

    pairs: list[tuple[Row, Row]] = []
    for _, group in groupby(sorted(rows, key=case), case):
        found = list(group)
        first = {row["provider"]: row for row in found if row["round"] == 1}
        second = {row["provider"]: row for row in found if row["round"] == 2}
        pairs += [(first[p], second[p]) for p in sorted(first, key=lambda p: first[p]["p50_ms"])]
    return pairs


def _line(row: Row, again: Row) -> str:
    shape = " ".join(f"{key}={value}" for key, value in row["shape"].items())
    return (
        f"| {row['scope']} | {row['direction']} | {shape} {row['dtype']} | {row['provider']} "
        f"| {row['p20_ms']:.3f}, {row['p50_ms']:.3f}, {row['p80_ms']:.3f} | {again['p50_ms']:.3f} "
        f"| {row['tflops']:.0f} | {row['gbps']:.0f} | {row['floor_share']:.2f} "
        f"| {row['error']:.1e} | {row['peak_bytes'] / 2**20:.0f} |"
    )


_MARKERS = "o^sD"
"""One for every ten colours."""


def _plot(rows: list[Row], path: Path) -> None:
    """Roofline: TFLOP/s over FLOP per byte, under the run's own two ceilings."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 5))).add_subplot()
    compute, bandwidth = rows[0]["matmul_tflops"], rows[0]["copy_gbps"] / 1000
    intensities = [row["flops"] / row["bytes"] for row in rows]
    ridge = compute / bandwidth
    span = [min(ridge, *intensities) / 2, 2 * max(ridge, *intensities)]
    axes.plot([span[0], ridge, span[1]], [span[0] * bandwidth, compute, compute], "k-")
    for number, provider in enumerate(dict.fromkeys(row["provider"] for row in rows)):
        own = [row for row in rows if row["provider"] == provider]
        places = [row["flops"] / row["bytes"] for row in own], [row["tflops"] for row in own]
        axes.scatter(*places, s=18, marker=_MARKERS[number // 10], label=provider)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s", title=rows[0]["gpu"])
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
