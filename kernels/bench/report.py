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
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` of measured rows, and return the paths.

    Rows that are there stay, but for those of the same cases on the same GPU.

    Raises:
        ValueError: for no rows, since a table of nothing would look like a result.
    """
    if not rows:
        raise ValueError("no rows were measured")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png")]
    there: list[Row] = json.loads(paths[0].read_text(encoding="utf-8")) if paths[0].is_file() else []
    anew = {_case(row) for row in rows}
    rows = [*(row for row in there if _case(row) not in anew), *rows]
    paths[0].write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(table(rows, name), encoding="utf-8")
    _plot(rows, paths[2])
    return paths


def table(rows: list[Row], name: str) -> str:
    """The Markdown page: for each run what it was on, then a line per provider, fastest first within a case."""
    page = [f"# {name}\n\nA difference below the spread of the two rounds is noise."]
    for about, own in groupby(sorted(rows, key=_run), _run):
        page += [f"\n{about}\n", _HEAD, *(_line(*pair) for pair in _pairs(list(own)))]
    return "\n".join([*page, ""])


def _run(row: Row) -> str:
    return (
        f"{row['gpu']}, driver {row['driver']}, torch {row['torch']}, triton {row['triton']}, cuDNN {row['cudnn']}, "
        f"commit {row['commit']}, {row['date']}. Ceilings of the same run: {row['matmul_tflops']:.0f} TFLOP/s bf16 "
        f"matmul, {row['copy_gbps']:.0f} GB/s copy."
    )


def _case(row: Row) -> tuple[str, ...]:
    return row["gpu"], row["op"], row["scope"], row["direction"], json.dumps(row["shape"]), row["dtype"]


def _pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """The two rounds of every provider, ordered by case and speed."""
    pairs: list[tuple[Row, Row]] = []
    for _, group in groupby(sorted(rows, key=_case), _case):
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
    """Rooflines, one for each GPU: TFLOP/s over FLOP per byte, under the two ceilings of its latest run."""
    from matplotlib.figure import Figure

    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    figure = Figure(figsize=(8, 5 * len(gpus)))
    for axes, gpu in zip(figure.subplots(len(gpus), squeeze=False).flat, gpus, strict=True):
        of_gpu = [row for row in rows if row["gpu"] == gpu]
        compute, bandwidth = of_gpu[-1]["matmul_tflops"], of_gpu[-1]["copy_gbps"] / 1000
        intensities = [row["flops"] / row["bytes"] for row in of_gpu]
        ridge = compute / bandwidth
        span = [min(ridge, *intensities) / 2, 2 * max(ridge, *intensities)]
        axes.plot([span[0], ridge, span[1]], [span[0] * bandwidth, compute, compute], "k-")
        for number, provider in enumerate(dict.fromkeys(row["provider"] for row in of_gpu)):
            own = [row for row in of_gpu if row["provider"] == provider]
            places = [row["flops"] / row["bytes"] for row in own], [row["tflops"] for row in own]
            axes.scatter(*places, s=18, marker=_MARKERS[number // 10], label=provider)
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s", title=gpu)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
