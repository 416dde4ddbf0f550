"""Are two runs the same? Every step's metrics and the last parameters of two run folders, held against each other.

Nothing that is missing, and nothing that is not a finite number, equals anything: a step that a run did not
record, a metric that it does not know, NaN on both sides are all differences of ``inf``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.methods.base import Method
from ladd_dist.methods.registry import method_of
from ladd_dist.training.tracking import Row, read_metrics

_COLUMNS = 2
"""So many of the metrics are shown step by step."""
_SHOWN_STEPS = 20

Values = list[float]
"""A metric at one step: one number, or those of a vector; empty where it was not recorded."""


@dataclass(frozen=True)
class Comparison:
    """Relative differences of two runs.

    Attributes:
        steps: iterations that both runs should have recorded.
        left: metrics by name, one entry per step, as the left run recorded them.
        right: the same of the right run.
        metrics: by name, each step's largest difference over the largest magnitude of that metric in either run.
        parameters: by network, the L2 norm of the difference over the larger one of the two networks' norms.
        tolerance: differences up to this are accepted.
    """

    steps: list[int]
    left: dict[str, list[Values]]
    right: dict[str, list[Values]]
    metrics: dict[str, list[float]]
    parameters: dict[str, float]
    tolerance: float

    @property
    def accepted(self) -> bool:
        """Whether no difference exceeds the tolerance."""
        return max(*map(max, self.metrics.values()), *self.parameters.values()) <= self.tolerance

    def worst(self, index: int) -> tuple[float, str]:
        """The largest difference at ``steps[index]``, and in which metric."""
        return max((values[index], name) for name, values in self.metrics.items())

    def first_beyond(self, bound: float) -> int | None:
        """The first step with a difference beyond a bound; 0 finds the first that is not bit-identical."""
        return next((step for i, step in enumerate(self.steps) if self.worst(i)[0] > bound), None)

    def table(self) -> str:
        """For a terminal: steps, the largest difference of each thing compared, and whether they are the same."""
        return "\n".join([*self._step_lines(), "", *self._largest_lines(), "", *self._summary_lines()])

    def _step_lines(self) -> list[str]:
        columns = list(self.metrics)[:_COLUMNS]
        names = [f"{name} {run}" for name in columns for run in ("left", "right")]
        lines = [" step" + "".join(f"{name:>17}" for name in names) + "  difference"]
        first = self.first_beyond(0)
        for index in _spread(len(self.steps), None if first is None else self.steps.index(first)):
            values = [_show(run[name][index]) for name in columns for run in (self.left, self.right)]
            difference, name = self.worst(index)
            where = f"{_amount(difference)} {name}" if difference else "0"
            mark = "  <- first difference" if self.steps[index] == first else ""
            lines.append(f"{self.steps[index]:>5}" + "".join(f"{v:>17}" for v in values) + f"  {where}{mark}")
        return lines

    def _largest_lines(self) -> list[str]:
        lines = ["largest relative difference"]
        for name, values in self.metrics.items():
            at = f" at step {self.steps[values.index(max(values))]}" if max(values) else ""
            lines.append(f"  {name:<20}{_amount(max(values))}{at}")
        return lines + [f"  {name + ' parameters':<20}{_amount(value)}" for name, value in self.parameters.items()]

    def _summary_lines(self) -> list[str]:
        first = self.first_beyond(self.tolerance)
        since = "" if first is None else f" from step {first} on"
        losses, parameters = max(map(max, self.metrics.values())), max(self.parameters.values())
        return [f"losses: {self._judge(losses)}{since}", f"parameters: {self._judge(parameters)}"]

    def _judge(self, difference: float) -> str:
        if difference == 0:
            return "identical"
        if difference <= self.tolerance:
            return f"within the tolerance of {self.tolerance:g}, not identical"
        return f"DIFFERENT, beyond the tolerance of {self.tolerance:g}" if self.tolerance else "DIFFERENT"


def compare_runs(left: Path, right: Path, steps: int, tolerance: float) -> Comparison:
    """Compare the records and the last checkpoints of two run folders.

    Args:
        steps: iterations that both have run, each of them logged.

    Raises:
        LaddError: if a run has no checkpoint, or a damaged one, or if they train by different methods.
    """
    expected = list(range(1, steps + 1))
    checkpoints = _last_checkpoint(left), _last_checkpoint(right)
    method = _method(*checkpoints)
    compared = list(dict.fromkeys(name for side in checkpoints for name in method.compared(side.config)))
    ours, theirs = (_record(read_metrics(run_dir), expected, compared) for run_dir in (left, right))
    return Comparison(
        steps=expected,
        left=ours,
        right=theirs,
        metrics={name: relative_steps(ours[name], theirs[name]) for name in compared},
        parameters=relative_parameters(*checkpoints, [*method.OPTIMIZERS, "ema"]),
        tolerance=tolerance,
    )


def relative_steps(left: list[Values], right: list[Values]) -> list[float]:
    """Each step's largest difference, over the largest magnitude that the metric has in any step of either run.

    Not over each step's own value: a loss that crosses zero would make rounding look large there.
    """
    finite = [abs(v) for values in (*left, *right) for v in values if math.isfinite(v)]
    scale = max(finite, default=0.0) or 1.0
    return [_distance(a, b) / scale for a, b in zip(left, right, strict=True)]


def check_methods(left: str, right: str) -> None:
    """Check that two runs, by their ``method.name``, have numbers to compare.

    Raises:
        LaddError: if they train by different methods.
    """
    if left != right:
        raise LaddError(f"left trains by method.name={left}, right by {right}: their numbers have nothing in common")


def _method(left: Checkpoint, right: Checkpoint) -> type[Method]:
    check_methods(left.config.method.name, right.config.method.name)
    return method_of(left.config)


def relative_parameters(left: Checkpoint, right: Checkpoint, networks: list[str]) -> dict[str, float]:
    """L2 norm of the difference of each network over the larger norm of the two, tensor by tensor to spare memory."""
    return {name: _relative_network(left, right, f"{name}/param/") for name in networks}


def _relative_network(left: Checkpoint, right: Checkpoint, prefix: str) -> float:
    shapes, theirs = ({k: s for k, s in c.shapes.items() if k.startswith(prefix)} for c in (left, right))
    if not shapes or shapes != theirs:
        return math.inf
    sums = torch.zeros(3, dtype=torch.float64)
    for key, shape in shapes.items():
        a, b = (checkpoint.read(key, 0, shape.numel()).double() for checkpoint in (left, right))
        sums += torch.stack([(a - b).square().sum(), a.square().sum(), b.square().sum()])
    difference, norm = float(sums[0]), float(sums[1:].max())
    if not math.isfinite(difference + norm):
        return math.inf
    return math.sqrt(difference / norm) if difference else 0.0


def _record(rows: list[Row], steps: list[int], metrics: Sequence[str]) -> dict[str, list[Values]]:
    by_step = {row["iteration"]: row for row in rows}
    return {name: [_values(by_step.get(step, {}), name) for step in steps] for name in metrics}


def _values(row: Row, name: str) -> Values:
    value = row.get(name, [])
    return value if isinstance(value, list) else [value]


def _distance(left: Values, right: Values) -> float:
    if not left or len(left) != len(right) or not all(map(math.isfinite, left + right)):
        return math.inf
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def _last_checkpoint(run_dir: Path) -> Checkpoint:
    checkpoint = open_newest(run_dir, World(0, 1, 0, torch.device("cpu")))
    if checkpoint is None:
        raise LaddError(f"no checkpoint at {run_dir}/checkpoints: this training did not reach its end")
    return checkpoint


def _spread(count: int, first: int | None) -> list[int]:
    """Rows to show: all of a few steps; of many, evenly spread ones, the last and the first differing one."""
    shown = {*range(0, count, math.ceil(count / _SHOWN_STEPS)), count - 1}
    return sorted(shown if first is None else shown | {first})


def _show(values: Values) -> str:
    return f"{values[0]:.9g}" if values else "missing"  # nine digits tell any two fp32 numbers apart


def _amount(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"
