"""Where numbers go: ``metrics.jsonl`` is the record, the console and a page show it, W&B mirrors it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.log import warn
from ladd_dist.methods.base import Method, rate_key
from ladd_dist.methods.registry import method_of
from ladd_dist.training.mirror import Mirror
from ladd_dist.training.page import LivePage

METRICS = "metrics.jsonl"
SPEED = "speed"
"""What belongs to no method: the chart of speed and learning rates."""
MEMORY = ("host_memory_gib", "gpu_memory_gib")
"""Entries of a row that are lists by rank."""

Row = dict[str, Any]
"""Numbers, lists by rank (`MEMORY`) or by what the method's `Method.ENTRY` names, and ``seconds`` by phase."""


class Tracker:
    """Appends rows on rank 0.

    Args:
        iteration: iterations finished before; rows of later ones, left by a run that was killed after its last
            checkpoint, are dropped from the record because they will be written again.
    """

    def __init__(self, config: Config, world: World, iteration: int) -> None:
        self._config, self._active = config, world.is_main
        if not self._active:
            return
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.yaml")
        self._open(folder, iteration)

    def rewind(self, iteration: int, aside: str) -> None:
        """Go on after an earlier iteration; the record as it was is kept under another name in its folder."""
        if self._active:
            self.close()
            folder = Path(self._config.run_dir)
            shutil.copy(folder / METRICS, folder / aside)
            self._open(folder, iteration)

    def _open(self, folder: Path, iteration: int) -> None:
        record = folder / METRICS
        rows, damaged = read_rows(record)
        if damaged:
            aside = folder / f"{METRICS}.damaged"
            record.replace(aside)
            warn(f"{record} has damaged lines ({', '.join(map(str, damaged))}): as it was it is {aside} now")
        temporary = folder / f".{METRICS}"
        kept = [row for row in rows if row["iteration"] <= iteration]
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(record)
        config = self._config
        self._file, self._method = record.open("a", encoding="utf-8"), method_of(config)
        self._mirror, self._page = Mirror(config, folder, iteration), LivePage(config, folder)

    def write(self, row: Row) -> None:
        """Record one logging step."""
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._mirror.write(_flat(row, self._method), row["iteration"])
        self._page.write()

    def pictures(self, iteration: int, paths: Mapping[str, Path]) -> None:
        """Mirror and show pictures that are written, by the names that W&B shows them under."""
        if self._active:
            self._mirror.pictures(iteration, paths)
            self._page.write()

    def mirror(self, iteration: int, values: dict[str, float]) -> None:
        """Mirror numbers that have a record of their own."""
        if self._active:
            self._mirror.write(values, iteration)

    def close(self) -> None:
        """Flush and finish."""
        if self._active:
            self._file.close()
            self._mirror.close()
            self._page.close()


def _flat(row: Row, method: type[Method]) -> dict[str, float | int]:
    """Lists and mappings as one number per name, as W&B can draw it, in sections that are the page's charts."""
    flat: dict[str, float | int] = {}
    sections = _sections(method)
    for metric, value in row.items():
        section = sections.get(metric.partition("/")[0])  # what follows is a bucket
        key = f"{section}/{metric}" if section else metric
        if isinstance(value, list):
            of = "rank" if metric in MEMORY else method.ENTRY
            flat |= {f"{key}/{of}_{i:02d}": v for i, v in enumerate(value)}
        elif isinstance(value, dict):
            flat |= {f"{key}/{name}": v for name, v in value.items()}
        else:
            flat[key] = value
    return flat


def _sections(method: type[Method]) -> dict[str, str]:
    """By metric: W&B puts those into one section whose names begin alike, up to the first slash."""
    rates = map(rate_key, method.OPTIMIZERS.values())
    drawn = {c.metric: chart.name for chart in method.CHARTS for panel in chart.panels for c in panel.curves}
    return drawn | dict.fromkeys(["samples_per_second", *rates], SPEED)


def read_metrics(run_dir: str | Path) -> list[Row]:
    """The rows recorded so far, but for damaged lines, with a warning, and a last one that a kill cut short."""
    path = Path(run_dir) / METRICS
    rows, damaged = read_rows(path)
    if damaged:
        warn(f"{path} has damaged lines, which are left out: {', '.join(map(str, damaged))}")
    return rows


def read_rows(path: Path) -> tuple[list[Row], list[int]]:
    """All rows of a record, and the numbers of the lines that are none."""
    lines = [_row(line) for line in whole_lines(path)]
    return [row for row in lines if row], [number for number, row in enumerate(lines, 1) if not row]


def whole_lines(path: Path) -> list[bytes]:
    """Those of a record: what follows the last line break is cut short. None of a file that is not there."""
    text = path.read_bytes() if path.is_file() else b""
    return text.split(b"\n")[:-1]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None
