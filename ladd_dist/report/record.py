"""What a trained and evaluated run has left in its folder, read and checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ladd_dist.config import Config, load
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.places import FOLDER, INDEX, PICTURES, RESULTS
from ladd_dist.evaluation.results import PictureIndex, Results
from ladd_dist.report.charts import Block
from ladd_dist.report.series import Rows
from ladd_dist.training.tracking import METRICS, read_metrics

_CONFIG = "config.yaml"
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Record:
    """All that a finished and evaluated run has left in its folder."""

    folder: Path
    config: Config
    rows: Rows
    results: Results
    blocks: list[Block]


def read_record(folder: Path) -> Record:
    """Read and check what the launchers wrote into ``run_dir``.

    Raises:
        LaddError: as `write_report`.
    """
    config = load(_require(folder / _CONFIG, "train"))
    _require(folder / METRICS, "train")
    rows = read_metrics(folder)
    if not rows:
        raise LaddError(f"{folder / METRICS} has no rows yet: let launchers/train.py log a step first")
    return Record(folder, config, rows, *read_evaluation(folder))


def read_evaluation(folder: Path) -> tuple[Results, list[Block]]:
    """Read and check the results of an evaluation in ``run_dir``, and where its pictures are.

    Raises:
        LaddError: if something is missing or damaged, naming the file.
    """
    results = _read(folder / FOLDER / RESULTS, Results)
    if {s.role for s in results.sets} != {"teacher", "student"}:
        raise LaddError(f"{folder / FOLDER / RESULTS} lacks teacher or student: run launchers/evaluate.py again")
    return results, _blocks(folder / FOLDER / PICTURES, results)


def _blocks(root: Path, results: Results) -> list[Block]:
    index = _read(root / INDEX, PictureIndex)
    names = [s.name for s in results.sets]
    if not any(index.buckets.values()) or not set(names) <= set(index.sets):
        raise LaddError(f"{root / INDEX} does not fit {RESULTS}: run launchers/evaluate.py again")
    return [
        Block(b, prompts, [[_picture(root / s / b, i) for i in range(len(prompts))] for s in names])
        for b, prompts in index.buckets.items()
    ]


def _picture(folder: Path, number: int) -> Path:
    return _require(folder / f"{number:02d}.png", "evaluate")


def _require(path: Path, launcher: str) -> Path:
    if not path.is_file():
        raise LaddError(f"{path} is missing: run launchers/{launcher}.py with this run_dir first")
    return path


def _read(path: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate(json.loads(_require(path, "evaluate").read_text(encoding="utf-8")))
    except (ValueError, ValidationError):
        raise LaddError(f"{path} is cut short or of another version: run launchers/evaluate.py again") from None
