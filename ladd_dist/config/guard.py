"""What the guard against collapse looks at, and what it does."""

from typing import Literal

from pydantic import Field, model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, Number, PositiveNumber

Action = Literal["warn", "lower_head_rate", "go_back", "stop"]
Severity = Literal["trouble", "collapse"]


class RuleConfig(Section):
    """A condition on one recorded number: its median over a window of rows is beyond a bound, row after row.

    Of an evaluation's number it is the whole interval that must be beyond.
    """

    metric: str
    """Of ``metrics.jsonl``, by its name there, or of ``evaluations.jsonl``, by its name in W&B, such as
    ``evaluation/student_4/excess``; ``evaluation/student`` is the student at its most steps. Rows without it are
    passed over."""
    above: Number | None = None
    below: Number | None = None
    of: Literal["number", "baseline", "best"] = "number"
    """Whether the bound is a number, or a multiple of the metric's own median over the rows before, or of the best of
    them: the lowest for ``above``, the greatest for ``below``."""
    entry: Literal["mean", "least", "greatest"] = "mean"
    """What is taken of a metric with several entries, such as one for each head."""
    window: Count = 5
    """Rows that the median is over."""
    patience: Count = 3
    """Rows in a row at which the condition must hold."""
    severity: Severity = "trouble"

    @property
    def of_evaluations(self) -> bool:
        """Whether it judges evaluations, not rows of ``metrics.jsonl``."""
        return self.metric.startswith("evaluation/")

    @model_validator(mode="after")
    def _one_bound(self) -> "RuleConfig":
        if (self.above is None) == (self.below is None):
            raise ValueError(f"a rule on {self.metric} needs one of above and below")
        return self


class GuardConfig(Section):
    """What happens when a rule alarms. The rules that come along are in `ladd_dist/training/rules.py`."""

    on_trouble: Action = "warn"
    on_collapse: Action = "warn"
    """``go_back`` goes on from the last healthy checkpoint with other noise and another order of the data."""
    rules: dict[str, RuleConfig] = Field(default={})
    """Further rules by name, or others in the place of those that come along."""
    without: list[str] = Field(default=[])
    """Names of rules to leave out."""
    quiet: Count = 200
    """Iterations after a rule's alarm in which it does not alarm again."""
    healthy_after: Count = 500
    """A checkpoint is healthy once no rule has alarmed for so many iterations after it."""
    redraw: bool = True
    """Before the first iteration, draw one sample of each rank again as the dataset says that the teacher drew it."""
    keep_healthy: Count = 1
    """Healthy checkpoints that are kept, beyond ``train.keep_checkpoints``, if an action is to go back."""
    max_go_backs: CountOrZero = 3
    """The run stops at an alarm after so many of them."""
    head_rate_factor: PositiveNumber = Field(default=0.5, lt=1)
    """What ``lower_head_rate`` multiplies the heads' learning rate by."""

    @model_validator(mode="after")
    def _alarms_again(self) -> "GuardConfig":
        if self.quiet > self.healthy_after:
            raise ValueError(f"quiet={self.quiet} must not exceed healthy_after={self.healthy_after}")
        return self

    @property
    def goes_back(self) -> bool:
        """Whether healthy checkpoints are needed."""
        return "go_back" in (self.on_trouble, self.on_collapse)

    def pins(self, checkpoint_every: int) -> int:
        """Checkpoints that are pinned at a time, at most: healthy ones, and those that may turn out to be."""
        return self.keep_healthy + self.healthy_after // checkpoint_every + 1 if self.goes_back else 0
