"""The guard against collapse: looks at every row and evaluation, says what is wrong with it, and acts as configured.

    RUN_DIR/guard.jsonl    every alarm: iteration, rule, value, bound, action
    RUN_DIR/checkpoints/step-*.pinned    of checkpoints that are healthy or may turn out to be, where it may go back

Rank 0 decides, by the record, and tells the other ranks. What it knows of earlier rows, evaluations, alarms and
healthy checkpoints is on disk, so that a run that was killed goes on as if it had not been.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ladd_dist.checkpoints.folders import GUARD, pin, pinned_by, step_folder, unpin, unpin_after
from ladd_dist.config import Config
from ladd_dist.config.guard import Action, RuleConfig
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.errors import LaddError
from ladd_dist.log import warn
from ladd_dist.methods.registry import method_of
from ladd_dist.training.evaluation import guarded, read_evaluations
from ladd_dist.training.hooks import GoBack, Hook, RunView
from ladd_dist.training.rules import Alarm, alarm, rules_of
from ladd_dist.training.tracking import Row, read_metrics

ALARMS = "guard.jsonl"
_ROWS = 1000
"""The newest rows, which are all that rules see: looking costs the same however long the run is."""
_STRENGTH: tuple[Action, ...] = ("warn", "lower_head_rate", "go_back", "stop")


@dataclass(frozen=True)
class Decision:
    """What all ranks do: the strongest of the alarms' actions, why, and the healthy iteration, if there is one."""

    action: Action
    reason: str
    healthy: int | None


class Guard(Hook):
    """Applies `training.rules` to a run.

    Args:
        trained: the method's engines by network.
        done: iterations finished before.

    Raises:
        LaddError: if the configuration leaves out a rule that does not exist.
    """

    name = "guard"

    def __init__(self, config: Config, world: World, trained: Mapping[str, Engine], done: int) -> None:
        self._settings, self._run_dir, self._world = config.guard, Path(config.run_dir), world
        self.every = config.train.evaluate_every or config.train.iterations
        rules, method = rules_of(config.guard), method_of(config)
        self._rules = {name: rule for name, rule in rules.items() if not rule.of_evaluations}
        self._distances = {name: rule for name, rule in rules.items() if rule.of_evaluations}
        self._heads = [trained[name] for name, section in method.OPTIMIZERS.items() if section == "head_optimizer"]
        self._milestones = method.milestones(config)
        self._remember(done)
        if world.is_main and config.train.global_batch == world.size:
            _tell_idle([name for name, rule in rules.items() if rule.metric in method.PAIRED], world.size)

    def _remember(self, done: int) -> None:
        if self._world.is_main:
            rows = (row for row in read_metrics(self._run_dir) if row["iteration"] <= done)
            self._rows = deque(rows, maxlen=_ROWS)
            self._alarms = last_alarms(self._run_dir, done)

    def after_row(self, run: RunView, row: Row) -> None:
        """Look, decide on rank 0, and act on every rank.

        Raises:
            GoBack: if the run is to go back.
            LaddError: if it is to stop.
        """
        if run.world.is_main:
            self._rows.append(row)
        self._judge(self._rules, self._rows if run.world.is_main else [], run.iteration)

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        """Look at the evaluation that was just made, if one was, and act as of a row.

        Those of the warm-up do not count: of the digits' healthy students some were far worse in it than the teacher.

        Raises:
            GoBack: if the run is to go back.
            LaddError: if it is to stop.
        """
        found = read_evaluations(self._run_dir) if run.world.is_main and run.config.train.evaluate_every else []
        since = self._since(run.iteration)
        rows = [guarded(row) for row in found if since < row.iteration <= run.iteration]
        self._judge(self._distances, rows, run.iteration)

    def after_checkpoint(self, run: RunView, folder: Path) -> None:
        """Keep it until it is known to be healthy or not."""
        if self._settings.goes_back and run.world.is_main:
            pin(folder, GUARD)

    def after_going_back(self, run: RunView) -> None:
        """Forget what came later."""
        self._remember(run.iteration)

    def _judge(self, rules: Mapping[str, RuleConfig], rows: Sequence[Row], now: int) -> None:
        """Decide on rank 0, and act on every rank.

        Args:
            rows: rank 0's.
        """
        decision = self._world.gather(self._decide(rules, rows, now) if self._world.is_main else None)[0]
        if decision is not None:
            self._act(decision)

    def _decide(self, rules: Mapping[str, RuleConfig], rows: Sequence[Row], now: int) -> Decision | None:
        alarms = [
            found
            for name, rule in rules.items()
            if not self._is_quiet(name, now) and (found := alarm(name, rule, rows, self._since(now)))
        ]
        if self._settings.goes_back:
            self._sort_checkpoints(now, bool(alarms))
        if not alarms:
            return None
        self._alarms |= {found.rule: now for found in alarms}
        decision = Decision(
            max(map(self._action, alarms), key=_STRENGTH.index),
            f"iteration {now}: {'; '.join(map(str, alarms))}",
            max(self._healthy(now), default=None),
        )
        self._write(now, alarms, decision)
        return decision

    def _since(self, now: int) -> int:
        """The last iteration at which the run became another one, such as the warm-up's end."""
        return max((at for at in self._milestones if at <= now), default=0)

    def _is_quiet(self, name: str, now: int) -> bool:
        return now - self._alarms.get(name, -self._settings.quiet) < self._settings.quiet

    def _action(self, found: Alarm) -> Action:
        return self._settings.on_collapse if found.config.severity == "collapse" else self._settings.on_trouble

    def _sort_checkpoints(self, now: int, alarmed: bool) -> None:
        """Let go of checkpoints that an alarm came too soon after, and of all but some healthy ones."""
        settings = self._settings
        if alarmed:
            unpin_after(self._run_dir, now - settings.healthy_after, GUARD)
        for iteration in self._healthy(now)[: -settings.keep_healthy]:
            unpin(step_folder(self._run_dir, iteration))

    def _healthy(self, now: int) -> list[int]:
        """Iterations of checkpoints after which no rule alarmed for long enough, ascending."""
        return [at for at in pinned_by(self._run_dir, GUARD) if at <= now - self._settings.healthy_after]

    def _write(self, now: int, alarms: list[Alarm], decision: Decision) -> None:
        to = decision.healthy if decision.action == "go_back" else None
        with (self._run_dir / ALARMS).open("a", encoding="utf-8") as file:
            for found in alarms:
                event = {"iteration": now, "rule": found.rule, "metric": found.config.metric, "value": found.value}
                event |= {"bound": found.bound, "severity": found.config.severity, "action": self._action(found)}
                file.write(json.dumps(event | {"back_to": to}) + "\n")

    def _act(self, decision: Decision) -> None:
        settings, reason = self._settings, f"guard: {decision.reason}"
        if decision.action == "stop":
            raise LaddError(f"{reason}: stopped as configured; the last checkpoint is untouched")
        if decision.action == "go_back":
            if decision.healthy is None:
                raise LaddError(
                    f"{reason}: no checkpoint is {settings.healthy_after} healthy iterations old: stopped"
                )
            raise GoBack(decision.healthy, reason)
        if decision.action == "lower_head_rate":
            for heads in self._heads:
                heads.rate_factor *= settings.head_rate_factor
            reason += f": the heads' learning rate is multiplied by {settings.head_rate_factor:g}"
        if self._world.is_main:
            warn(reason)


def _tell_idle(rules: Sequence[str], ranks: int) -> None:
    """Of those on metrics that compare the samples of a rank, where each has one in an iteration."""
    if rules:
        warn(
            f"guard: {' and '.join(map(repr, rules))} will never alarm, for a rank's samples are compared with one "
            f"another and each rank has one in an iteration: set train.global_batch={2 * ranks} or more"
        )


def last_alarms(run_dir: Path, done: int) -> dict[str, int]:
    """The iteration at which each rule alarmed last, up to ``done``, in what the run has not gone back from."""
    path, alarms = run_dir / ALARMS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):  # a line that a kill cut short
            event = json.loads(line)
            alarms.append((event["rule"], event["iteration"]))
            if (to := event["back_to"]) is not None:
                alarms = [(rule, at) for rule, at in alarms if at <= to]
    return {rule: at for rule, at in alarms if at <= done}
