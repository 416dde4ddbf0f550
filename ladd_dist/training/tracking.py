"""Where numbers go: ``metrics.jsonl`` is the record, the console shows it, W&B mirrors it."""

import json
from pathlib import Path
from typing import Any

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.training.mirror import Mirror

METRICS = "metrics.jsonl"

Row = dict[str, Any]
"""Numbers, lists with an entry per head or rank, and ``seconds`` by phase."""


class Tracker:
    """Appends rows on rank 0.

    Args:
        iteration: iterations finished before; rows behind it, left by a run that was killed after its last
            checkpoint, are dropped from the record because they will be written again.
    """

    def __init__(self, config: Config, world: World, iteration: int) -> None:
        self._active = world.is_main
        if not self._active:
            return
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.yaml")
        kept = [row for row in read_metrics(folder) if row["iteration"] <= iteration]
        temporary = folder / f".{METRICS}"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(folder / METRICS)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._mirror = Mirror(config, folder, iteration)

    def write(self, row: Row) -> None:
        """Record one logging step."""
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._mirror.write(_flat(row), row["iteration"])

    def picture(self, iteration: int, path: Path) -> None:
        """Mirror a picture sheet."""
        if self._active:
            self._mirror.picture(iteration, path)

    def close(self) -> None:
        """Flush and finish."""
        if self._active:
            self._file.close()
            self._mirror.close()


def _flat(row: Row) -> dict[str, float | int]:
    """Lists and mappings as one number per name, which is what W&B can draw."""
    flat: dict[str, float | int] = {}
    for key, value in row.items():
        if isinstance(value, list):
            entry = "rank" if key.endswith("_gib") else "head"
            flat |= {f"{key}/{entry}_{i:02d}": v for i, v in enumerate(value)}
        elif isinstance(value, dict):
            flat |= {f"{key}/{name}": v for name, v in value.items()}
        else:
            flat[key] = value
    return flat


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows recorded so far; a last line cut short by a kill is left out."""
    path = Path(run_dir) / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
