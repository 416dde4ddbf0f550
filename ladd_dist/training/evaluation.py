"""Evaluations of the student while it trains: the same held-out prompts and noise every time."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.evaluation.in_training import InTraining
from ladd_dist.evaluation.results import Estimate, Evaluated
from ladd_dist.evaluation.table import columns, spread
from ladd_dist.log import log, warn
from ladd_dist.methods.registry import method_of
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.hooks import Hook, RunView
from ladd_dist.training.tracking import Row, whole_lines

EVALUATIONS = "evaluations.jsonl"
"""The record, in a run's folder: a line is an `Evaluated`."""
_STUDENTS = "student_"
_LOST = "lines that are damaged or of another version"


class Evaluation(Hook):
    """Measures the averaged weights, see `InTraining`.

    Raises:
        LaddError, Requeue: as `InTraining`.
    """

    name = "evaluation"

    def __init__(self, config: Config, world: World, signals: Signals) -> None:
        self.every = config.train.evaluate_every
        self._folder = Path(config.run_dir)
        self._evaluate = InTraining(config, world, signals, method_of(config).teacher_blocks(config))

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        """Record an evaluation."""
        with run.student.averaged():
            drawn = self._evaluate.draw(run.student, run.teacher, run.iteration)
        found = self._evaluate.measure(drawn, run.iteration)
        if run.world.is_main:
            record(self._folder, found)
            log(f"{run.iteration:>6}  evaluation: {_line(found, list(drawn))}")
        run.tracker.mirror(run.iteration, {name: number.value for name, number in numbers(found).items()})


def record(run_dir: Path, row: Evaluated) -> None:
    """Append a row to the record; later ones, which a run left that was killed after its last checkpoint, go.

    Lines that are none are added to a file beside it, since others may have been set aside before.
    """
    rows, lost = _read(run_dir / EVALUATIONS)
    if lost:
        aside = run_dir / f"{EVALUATIONS}.damaged"
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line in lost)
        warn(f"{run_dir / EVALUATIONS} has {len(lost)} {_LOST}: they are in {aside} now")
    kept = [old for old in rows if old.iteration < row.iteration]
    temporary = run_dir / f".{EVALUATIONS}"
    temporary.write_text("".join(each.model_dump_json() + "\n" for each in (*kept, row)), encoding="utf-8")
    temporary.replace(run_dir / EVALUATIONS)


def read_evaluations(run_dir: str | Path) -> list[Evaluated]:
    """The evaluations recorded so far, in the order of iterations, but for lines that are none, with a warning."""
    path = Path(run_dir) / EVALUATIONS
    found, lost = _read(path)
    if lost:
        warn(f"{path} has {len(lost)} {_LOST}, which are left out")
    return found


def _read(path: Path) -> tuple[list[Evaluated], list[bytes]]:
    """All rows of the record, and the lines that are none."""
    found, lost = list[Evaluated](), list[bytes]()
    for line in whole_lines(path):
        try:
            found.append(Evaluated.model_validate_json(line))
        except ValidationError:
            lost.append(line)
    return found, lost


def _line(row: Evaluated, names: list[str]) -> str:
    return ", ".join(f"{name} {spread(row.overall[name].main.excess)}" for name in names)


def numbers(row: Evaluated) -> dict[str, Estimate]:
    """The student's, by the names that W&B shows them under, such as ``evaluation/student_4/excess``."""
    sets = {name: of for name, of in row.overall.items() if name.startswith(_STUDENTS)}
    sets |= {f"{name}/{b}": of for b, of_sets in row.by_bucket.items() for name, of in of_sets.items()}
    found = {f"evaluation/{name}/{key}": n for name, of in sets.items() for key, n in columns(of).items()}
    return {name: number for name, number in found.items() if number is not None}


def guarded(row: Evaluated) -> Row:
    """As rules of the guard see it: `numbers`, and again as ``evaluation/student/...`` those in the most steps."""
    found = numbers(row)
    most = max(int(name.removeprefix(_STUDENTS)) for name in row.overall if name.startswith(_STUDENTS))
    first = f"evaluation/{_STUDENTS}{most}/"
    alike = {name.replace(first, "evaluation/student/"): n for name, n in found.items() if name.startswith(first)}
    return {"iteration": row.iteration, **found, **alike}
