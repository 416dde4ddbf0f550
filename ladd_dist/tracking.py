"""Where numbers go: ``metrics.jsonl`` is the record, the console shows it, W&B mirrors it."""

import json
import secrets
from pathlib import Path
from typing import Any

from ladd_dist.config import Config
from ladd_dist.distributed import World

METRICS = "metrics.jsonl"
_RUN_ID = "wandb_run_id"

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
        self._wandb: Any = None
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
        if config.tracking.wandb != "off":
            self._wandb = _start_wandb(config, folder)

    def write(self, row: Row) -> None:
        """Record one logging step."""
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(_flat(row), step=row["iteration"])

    def picture(self, iteration: int, path: Path) -> None:
        """Mirror a picture sheet."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({"preview": wandb.Image(str(path))}, step=iteration)

    def close(self) -> None:
        """Flush and finish."""
        if self._active:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


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


def _start_wandb(config: Config, folder: Path) -> Any:
    import wandb

    # One W&B run per run_dir, however often the job is restarted.
    record = folder / _RUN_ID
    if not record.is_file():
        record.write_text(secrets.token_hex(4), encoding="utf-8")
    return wandb.init(
        project=config.tracking.project,
        mode=config.tracking.wandb,  # type: ignore[arg-type]
        id=record.read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(folder),
        config=config.model_dump(),
    )
