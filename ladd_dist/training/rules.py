"""What tells a sick run: conditions on the rows of ``metrics.jsonl`` and on evaluations, as pure functions.

``docs/collapse.md`` shows the curves behind the bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from ladd_dist.config import Config, GuardConfig, RuleConfig
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.results import Estimate
from ladd_dist.training.tracking import Row

BASELINE_ROWS = 100
"""A baseline is the median over so many rows before those that are judged, or over fewer, but not below
`BASELINE_LEAST`."""
BASELINE_LEAST = 10

RULES: Mapping[str, RuleConfig] = {
    # Latents that the teacher did not draw, whatever the dataset says of itself. Those that have nothing in common
    # are about 1.4 apart, scans of the same digits were 0.5 to 1.2; the teacher's own in another precision came to
    # 0.01.
    "not the teacher's": RuleConfig(metric="redrawn", above=0.3, window=1, patience=1, severity="collapse"),
    # Updates whose gradient is not finite are left out; when most of a row's are, that is no accident.
    "not finite": RuleConfig(metric="skipped_share", above=0.5, window=1, patience=1, severity="collapse"),
    # The student's latents against the data's of the same batch: medians of healthy ones stay within 0.8 to 1.2. An
    # undistilled student may begin below 1, its one-step predictions being blurred and alike: what counts is a fall.
    "washed out": RuleConfig(metric="x0_scale", below=0.75, of="baseline", severity="collapse"),
    "blurred": RuleConfig(metric="x0_detail", below=0.7, of="baseline", severity="collapse"),
    "alike": RuleConfig(metric="x0_diversity", below=0.75, of="baseline", severity="collapse"),
    "too strong": RuleConfig(metric="x0_scale", above=1.5, severity="collapse"),
    "noisy": RuleConfig(metric="x0_detail", above=2.0, severity="collapse"),
    "shifted": RuleConfig(metric="x0_shift", above=1.0, severity="collapse"),
    # A dataset of one picture, or of numbers that no autoencoder gave: 0.78 on the digits, 0 if constant.
    "constant data": RuleConfig(metric="data_diversity", below=0.1, severity="collapse"),
    # Hinge losses of both kinds near zero leave neither side a gradient: how a public 6B run collapsed, unseen for
    # thousands of steps, with pooled logits.
    "saturated": RuleConfig(metric="d_loss", below=0.1, severity="collapse"),
    # Knowing nothing costs 2, and no healthy row cost more than 2.3. Heads that are thrown about calm down within ten
    # iterations, which may be one row.
    "thrown about": RuleConfig(metric="d_loss", above=4.0, window=1, patience=1, severity="collapse"),
    # Logits without a spread, a 20th of the hinge's margin: heads that look at nothing, dead or frozen, some or all.
    "flat heads": RuleConfig(metric="head_spread", below=0.05, severity="collapse"),
    "dead head": RuleConfig(metric="head_spread", below=0.01, entry="least"),
    # Heads that a student outruns before they see anything: what they tell it dies away, a hundredfold and more, and
    # nothing else shows. In healthy runs it fell to a tenth at the least.
    "mute heads": RuleConfig(metric="latent_grad_norm", below=0.02, of="best"),
    # Limits at which others stop: both accuracies above 95%, a gap between mean logits above 15.
    "certain heads": RuleConfig(metric="head_right", above=0.95, patience=10),
    "wide gap": RuleConfig(metric="gap", above=15.0),
    # Heads that say the same of everything are right about the one kind and wrong about the other.
    "all real": RuleConfig(metric="fake_right", below=0.1, severity="collapse"),
    "all fake": RuleConfig(metric="real_right", below=0.1, severity="collapse"),
    # The average goes a part of its way to the weights between two rows; away from them is a wrong sign, and nowhere
    # is no average. A public run trained so and looked normal.
    "average astray": RuleConfig(metric="ema_follows", below=1e-5, window=1, severity="collapse"),
    # Weights that stand still, as bf16 ones do at a rate of 1e-6, or that move by their own size from row to row.
    "weights stand": RuleConfig(metric="update_size", below=1e-9),
    "weights leap": RuleConfig(metric="update_size", above=0.3, severity="collapse"),
    # Gradients grow tenfold over a healthy run, but not within the hundred rows of a baseline.
    "steep student": RuleConfig(metric="student_grad_norm", above=10.0, of="baseline"),
    "steep heads": RuleConfig(metric="head_grad_norm", above=10.0, of="baseline"),
    # A learning rate that grows by itself, or a loss that pulls ever harder.
    "weights run": RuleConfig(metric="update_size", above=5.0, of="baseline", severity="collapse"),
    # What the student draws, measured while it trains. Evaluations are few and each has an interval, which must lie
    # beyond the bound as a whole, twice in a row. Students of the digits begin within the interval around 1.
    "worse than undistilled": RuleConfig(
        metric="evaluation/student/ratio", above=1.0, window=1, patience=2, severity="collapse"
    ),
    "better, then worse": RuleConfig(
        metric="evaluation/student/excess", above=1.5, of="best", window=1, patience=2, severity="collapse"
    ),
}
"""By name."""


@dataclass(frozen=True)
class Alarm:
    """A rule that holds.

    Attributes:
        value: the median of the newest window; of evaluations, that of the ends of intervals next to the bound.
        bound: what it is beyond.
    """

    rule: str
    config: RuleConfig
    value: float
    bound: float

    def __str__(self) -> str:
        side = "above" if self.config.above is not None else "below"
        whose = "" if self.config.of == "number" else f" (by the run's own {self.config.of})"
        end = " with its whole interval" if self.config.of_evaluations else ""
        return f"{self.rule}: {self.config.metric} {self.value:.4g} is {side} {self.bound:.4g}{end}{whose}"


def rules_of(config: GuardConfig) -> dict[str, RuleConfig]:
    """Those that come along and the configured ones.

    Raises:
        LaddError: if one that is to be left out does not exist.
    """
    rules = {**RULES, **config.rules}
    if unknown := [name for name in config.without if name not in rules]:
        raise LaddError(f"guard.without names {unknown[0]!r}, which is no rule: known are {', '.join(rules)}")
    return {name: rule for name, rule in rules.items() if name not in config.without}


def check_guard(config: Config) -> None:
    """See that the rules exist, and that evaluations come in time to judge a checkpoint; costs nothing.

    Raises:
        LaddError: if one that is to be left out does not exist, or if a checkpoint would count as healthy before two
            evaluations, as many as the rules that come along take, have seen it.
    """
    settings, every = config.guard, config.train.evaluate_every
    judging = [name for name, rule in rules_of(settings).items() if rule.of_evaluations]
    if settings.goes_back and judging and settings.healthy_after < 2 * every:
        raise LaddError(
            f"guard.healthy_after={settings.healthy_after} is less than two train.evaluate_every={every}: the guard "
            f"could go back to a checkpoint that {judging[0]!r} has not judged yet: set guard.healthy_after="
            f"{2 * every} or more, or evaluate more often"
        )


def alarm(name: str, rule: RuleConfig, rows: Sequence[Row], since: int = 0) -> Alarm | None:
    """Whether a rule holds at the newest row, and has for as many rows in a row as it takes.

    Args:
        rows: the newest that are recorded, in their order.
        since: iteration after which rows count for a baseline or a best: before it, the run was another one, as in
            its warm-up.
    """
    if not rows or rule.metric not in rows[-1]:
        return None
    measured = [row for row in rows if rule.metric in row]
    bound = _bound(rule, measured, since)
    if bound is None or len(measured) < rule.window + rule.patience - 1:
        return None
    values = [_nearest(rule, row) for row in measured[-(rule.window + rule.patience - 1) :]]
    medians = [median(values[start : start + rule.window]) for start in range(rule.patience)]
    beyond = (m > bound if rule.above is not None else m < bound for m in medians)
    return Alarm(name, rule, medians[-1], bound) if all(beyond) else None


def _bound(rule: RuleConfig, measured: Sequence[Row], since: int) -> float | None:
    """The bound as a number; None where there is no baseline or best yet."""
    bound = rule.above if rule.above is not None else rule.below
    assert bound is not None
    if rule.of == "number":
        return bound
    judged = rule.window + rule.patience - 1
    before = [row for row in measured[:-judged] if row["iteration"] > since]
    if rule.of == "best":
        return _beyond_best(rule, bound, before) if before else None
    before = before[-BASELINE_ROWS:]
    return bound * median(_value(rule, row) for row in before) if len(before) >= BASELINE_LEAST else None


def _beyond_best(rule: RuleConfig, factor: float, before: Sequence[Row]) -> float:
    """A multiple of the best, but none within its interval: one near 0, or below, has multiples that say nothing."""
    if rule.above is not None:
        best = min(before, key=lambda row: _value(rule, row))
        return max(factor * _value(rule, best), _end(best[rule.metric], "high", _value(rule, best)))
    best = max(before, key=lambda row: _value(rule, row))
    return min(factor * _value(rule, best), _end(best[rule.metric], "low", _value(rule, best)))


def _nearest(rule: RuleConfig, row: Row) -> float:
    """What must be beyond the bound: of a number with an interval, the end next to it."""
    return _end(row[rule.metric], "low" if rule.above is not None else "high", _value(rule, row))


def _end(number: object, end: Literal["low", "high"], value: float) -> float:
    """Of its interval; itself where there is none."""
    found = getattr(number, end) if isinstance(number, Estimate) else None
    return value if found is None else found


def _value(rule: RuleConfig, row: Row) -> float:
    value = row[rule.metric]
    if isinstance(value, Estimate):
        return value.value
    if not isinstance(value, list):
        return float(value)
    return fmean(value) if rule.entry == "mean" else min(value) if rule.entry == "least" else max(value)
