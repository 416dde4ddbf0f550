"""The guard: it acts on every rank alike, keeps healthy checkpoints, and knows after a kill what it knew."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ALONE, tiny_config
from launch import run_ranks

from ladd_dist.checkpoints.folders import is_pinned, pin, pinned_by, step_folder
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.room import checkpoint_bytes, missing_room
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_BAD_INPUT, LaddError
from ladd_dist.evaluation.results import Estimate, Evaluated, Measures, TeacherDistance
from ladd_dist.measuring.sickness import SICKNESSES
from ladd_dist.supervision.supervisor import print_error
from ladd_dist.training.evaluation import guarded as guarded_row
from ladd_dist.training.evaluation import read_evaluations, record
from ladd_dist.training.guard import ALARMS, Guard, last_alarms
from ladd_dist.training.hooks import Hook, RunView
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

ALWAYS = "guard.rules={always: {metric: student_lr, above: 0, window: 1, patience: 1}}"
SOON = ["guard.quiet=2", "guard.healthy_after=2"]


def guarded(run_dir: Path, dataset: Path, *overrides: str) -> Config:
    base = ["train.iterations=8", "train.keep_checkpoints=1", *SOON]
    return tiny_config(run_dir, dataset, *base, *overrides)


def spoil(trainer: Trainer) -> None:
    SICKNESSES["not-a-number"].begin(trainer)


def train(trainer: Trainer, spoilt: list[int]) -> None:
    """Train, with a NaN in the heads after each of these iterations, once."""
    left = list(spoilt)
    for done in trainer.iterations():
        if left and done == left[0]:
            spoil(trainer)
            left.pop(0)


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / ALARMS).read_text().splitlines()]


# Going back


def test_a_run_that_is_sick_goes_on_from_its_last_healthy_checkpoint(tmp_path: Path, dataset: Path) -> None:
    config = guarded(tmp_path, dataset, "guard.on_collapse=go_back")
    trainer = Trainer(config, ALONE)
    train(trainer, [4])
    assert (trainer.done, trainer.attempt) == (8, 1)
    (event,) = events(tmp_path)
    assert (event["iteration"], event["rule"], event["back_to"]) == (5, "not finite", 2)
    assert [row["iteration"] for row in read_metrics(tmp_path)] == list(range(1, 9))
    before = (tmp_path / "metrics-attempt-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in before] == [1, 2, 3, 4, 5]
    saved = open_newest(tmp_path, ALONE)
    assert saved is not None and (saved.state.iteration, saved.state.attempt) == (8, 1)
    assert not any(row["skipped"] for row in read_metrics(tmp_path))


def test_another_attempt_has_other_noise(tmp_path: Path, dataset: Path) -> None:
    train(Trainer(guarded(tmp_path, dataset, "guard.on_collapse=go_back"), ALONE), [4])
    first = [json.loads(line) for line in (tmp_path / "metrics-attempt-0.jsonl").read_text().splitlines()]
    again = read_metrics(tmp_path)
    assert first[1]["g_loss"] == again[1]["g_loss"] and first[2]["g_loss"] != again[2]["g_loss"]


def test_a_run_goes_back_so_often_and_then_stops(tmp_path: Path, dataset: Path) -> None:
    trainer = Trainer(guarded(tmp_path, dataset, "guard.on_collapse=go_back", "guard.max_go_backs=2"), ALONE)
    with pytest.raises(LaddError, match=r"not finite: .* gone back guard\.max_go_backs=2 times already"):
        train(trainer, [4, 4, 4, 4])
    assert trainer.attempt == 2
    saved = open_newest(tmp_path, ALONE)
    assert saved is not None and saved.state.attempt == 2


def test_a_run_that_diverges_goes_back_if_it_may_and_else_ends(tmp_path: Path, dataset: Path) -> None:
    back, warned = (tmp_path / name for name in ("back", "warned"))
    trainer = Trainer(guarded(back, dataset, "guard.on_collapse=go_back", "train.max_skipped=1"), ALONE)
    train(trainer, [4])
    assert (trainer.done, trainer.attempt) == (8, 1)
    with pytest.raises(LaddError, match="training diverged: the last 2 iterations up to 6"):
        train(Trainer(guarded(warned, dataset, "train.max_skipped=2"), ALONE), [4])
    assert [row["iteration"] for row in read_metrics(warned)] == [1, 2, 3, 4, 5, 6]


def test_without_a_healthy_checkpoint_it_stops(tmp_path: Path, dataset: Path) -> None:
    trainer = Trainer(guarded(tmp_path, dataset, "guard.on_collapse=go_back"), ALONE)
    with pytest.raises(LaddError, match="no checkpoint is 2 healthy iterations old: stopped") as stopped:
        train(trainer, [2])
    assert "\n" not in str(stopped.value)


def _train_on(world: World, config: Config) -> tuple[int, int, list[int]]:
    trainer = Trainer(config, world)
    seen = []
    for done in trainer.iterations():
        seen.append(done)
        if done == 4 and trainer.attempt == 0 and world.is_main:  # one rank's heads alone
            spoil(trainer)
    return trainer.done, trainer.attempt, seen


def test_ranks_go_back_together(tmp_path: Path, dataset: Path) -> None:
    config = guarded(tmp_path, dataset, "guard.on_collapse=go_back", "engine=fsdp2", "train.micro_batch=null")
    first, second = run_ranks(_train_on, config, size=2)
    assert first == second == (8, 1, [1, 2, 3, 4, 3, 4, 5, 6, 7, 8])


# Evaluations

WORSE = "guard.rules={worse: {metric: evaluation/student_4/excess, above: 1.5, of: best, window: 1, patience: 1}}"
EVALUATED = ["train.evaluate_every=2", "guard.without=['better, then worse']", "guard.on_trouble=go_back", WORSE]
EVALUATED += ["guard.healthy_after=4"]


class Scripted(Hook):
    """In the place of the evaluation hook: records a student that is best at iteration 4, and only then."""

    name = "evaluation"

    def __init__(self, config: Config, world: World, *_: object) -> None:
        self.every, self._folder = config.train.evaluate_every, Path(config.run_dir)

    def after_step(self, run: RunView, metrics: Any) -> None:
        if run.world.is_main:
            excess = Estimate(value=10.0 if run.iteration == 4 else 20.0)
            measures = Measures(pictures=9, judge=TeacherDistance(kid=excess, excess=excess))
            found = {"student_4": measures, "student_1": measures, "teacher_4": measures}
            record(self._folder, Evaluated(iteration=run.iteration, judge="none", overall=found, by_bucket={}))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladd_dist.training.trainer.Evaluation", Scripted)


def test_a_student_that_becomes_worse_goes_back(tmp_path: Path, dataset: Path, scripted: None) -> None:
    config = guarded(tmp_path, dataset, *EVALUATED, "guard.max_go_backs=1", "train.iterations=6")
    trainer = Trainer(config, ALONE)
    with pytest.raises(LaddError, match="gone back guard.max_go_backs=1 times already"):
        train(trainer, [])
    first, second = events(tmp_path)
    assert first == second and (first["iteration"], first["back_to"], first["bound"]) == (6, 2, 15)
    assert first["metric"] == "evaluation/student_4/excess"
    assert [row.iteration for row in read_evaluations(tmp_path)] == [2, 4, 6]


def test_a_run_that_was_killed_knows_its_best_evaluation(tmp_path: Path, dataset: Path, scripted: None) -> None:
    config = guarded(tmp_path, dataset, "train.evaluate_every=2", WORSE, "train.iterations=6")
    train_to(config, 4)
    assert not (tmp_path / ALARMS).exists()
    Trainer(config, ALONE).run()
    assert [(event["rule"], event["iteration"], event["bound"]) for event in events(tmp_path)] == [("worse", 6, 15)]


def test_evaluations_of_the_warm_up_do_not_count(tmp_path: Path, dataset: Path, scripted: None) -> None:
    settings = ["train.evaluate_every=2", WORSE, "train.iterations=6", "method.warmup_iterations=4"]
    Trainer(guarded(tmp_path, dataset, *settings), ALONE).run()
    assert not (tmp_path / ALARMS).exists()


def _train_scripted(world: World, config: Config) -> tuple[int, int, list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladd_dist.training.trainer.Evaluation", Scripted)
        trainer = Trainer(config, world)
        seen = []
        with pytest.raises(LaddError):
            for done in trainer.iterations():
                seen.append(done)
    return trainer.done, trainer.attempt, seen


def test_ranks_go_back_together_after_an_evaluation(tmp_path: Path, dataset: Path) -> None:
    settings = [*EVALUATED, "guard.max_go_backs=1", "train.iterations=6", "engine=fsdp2", "train.micro_batch=null"]
    first, second = run_ranks(_train_scripted, guarded(tmp_path, dataset, *settings), size=2)
    assert first == second == (6, 1, [1, 2, 3, 4, 5, 3, 4, 5])


ACTUAL = {
    "worse than undistilled": ([(20.0, 0.5), (20.0, 1.5), (20.0, 1.5)], 6),
    "better, then worse": ([(20.0, 0.5), (10.0, 0.3), (20.0, 0.5), (20.0, 0.5)], 8),
}
"""Excess and ratio of a student's evaluations, and the iteration at which the rule that comes along alarms."""


@pytest.mark.parametrize("name", [*ACTUAL, None])
def test_rules_on_distances_judge_what_evaluations_record(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """By the names under which an evaluation's numbers reach the guard, and no student that is healthy."""
    numbers, at = ACTUAL[name] if name else ([(20.0, 0.9), (10.0, 0.4), (12.0, 0.5), (14.0, 0.6)], 0)

    def after_step(hook: Scripted, run: RunView, metrics: Any) -> None:
        value, ratio = numbers[min(run.iteration // 2, len(numbers)) - 1]
        excess = Estimate(value=value, low=value * 0.9, high=value * 1.1)
        of = Estimate(value=ratio, low=ratio * 0.9, high=ratio * 1.1)
        measures = Measures(pictures=9, judge=TeacherDistance(kid=excess, excess=excess, ratio=of))
        found = Evaluated(iteration=run.iteration, judge="none", overall={"student_4": measures}, by_bucket={})
        record(Path(run.config.run_dir), found)

    monkeypatch.setattr(Scripted, "after_step", after_step)
    monkeypatch.setattr("ladd_dist.training.trainer.Evaluation", Scripted)
    settings = ["train.evaluate_every=2", "method.warmup_iterations=0", "guard.quiet=8", "guard.healthy_after=8"]
    Trainer(guarded(tmp_path, dataset, *settings), ALONE).run()
    found = [(event["rule"], event["iteration"]) for event in (events(tmp_path) if name else [])]
    assert found == ([(name, at)] if name else [])
    assert name or not (tmp_path / ALARMS).exists()


def test_the_most_steps_have_a_name_of_their_own_whatever_their_number() -> None:
    few, many = (Estimate(value=value) for value in (1.0, 2.0))
    overall = {
        name: Measures(pictures=9, judge=TeacherDistance(kid=excess, excess=excess))
        for name, excess in (("teacher_2", few), ("student_1", few), ("student_2", many))
    }
    row = guarded_row(Evaluated(iteration=7, judge="none", overall=overall, by_bucket={}))
    assert row["evaluation/student/excess"] == row["evaluation/student_2/excess"] == many and row["iteration"] == 7
    assert row["evaluation/student_1/excess"] == few and not any("teacher" in name for name in row)


# Other actions


def test_it_stops_a_run_with_a_code_that_does_not_requeue(tmp_path: Path, dataset: Path) -> None:
    trainer = Trainer(guarded(tmp_path, dataset, "guard.on_collapse=stop"), ALONE)
    with pytest.raises(LaddError, match=r"^guard: iteration 5: not finite: .* stopped as configured") as stopped:
        train(trainer, [4])
    assert print_error(stopped.value) == EXIT_BAD_INPUT


def test_by_default_it_warns_and_trains_the_same(tmp_path: Path, dataset: Path, caplog: Any) -> None:
    Trainer(guarded(tmp_path / "warned", dataset, ALWAYS), ALONE).run()
    Trainer(guarded(tmp_path / "silent", dataset), ALONE).run()
    assert [event["iteration"] for event in events(tmp_path / "warned")] == [1, 3, 5, 7]
    assert not (tmp_path / "silent" / ALARMS).exists()
    ours, theirs = (read_metrics(tmp_path / run) for run in ("warned", "silent"))
    assert [row["g_loss"] for row in ours] == [row["g_loss"] for row in theirs]
    assert not pinned_by(tmp_path / "warned", "guard")
    assert any("guard: iteration 1: always: student_lr" in record.getMessage() for record in caplog.records)


def test_it_lowers_the_heads_learning_rate_and_a_resumed_run_keeps_that(tmp_path: Path, dataset: Path) -> None:
    settings = [ALWAYS, "guard.on_trouble=lower_head_rate", "head_optimizer.decay=constant"]
    config = guarded(tmp_path, dataset, *settings, "guard.quiet=3", "guard.healthy_after=3")
    train_to(config, 4)
    Trainer(config, ALONE).run()
    assert config.head_optimizer is not None
    rates = [row["head_lr"] / config.head_optimizer.lr for row in read_metrics(tmp_path)]
    assert rates == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]  # alarms at 1, 4 and 7


# Its memory


def train_to(config: Config, until: int) -> None:
    """Train, and leave after so many iterations as if killed: later rows and alarms are on disk."""
    trainer = Trainer(config, ALONE)
    for done in trainer.iterations():
        if done == until:
            break
    trainer.writer.wait()


def guard_of(trainer: Trainer) -> Guard:
    (guard,) = (hook for hook in trainer.hooks if isinstance(hook, Guard))
    return guard


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, dataset: Path) -> None:
    settings = [ALWAYS, "guard.quiet=3", "guard.healthy_after=3", "guard.on_collapse=go_back"]
    whole, killed = (guarded(tmp_path / run, dataset, *settings) for run in ("whole", "killed"))
    train_to(whole, 8)
    train_to(killed, 7)  # the checkpoint is of 6, the alarm at 7 will be raised again
    assert last_alarms(tmp_path / "killed", 7) == {"always": 7}
    trainer = Trainer(killed, ALONE)
    assert guard_of(trainer)._alarms == {"always": 4}
    assert [row["iteration"] for row in guard_of(trainer)._rows] == [1, 2, 3, 4, 5, 6]
    trainer.run()
    assert {event["iteration"] for event in events(tmp_path / "killed")} == {1, 4, 7}
    assert last_alarms(tmp_path / "killed", 8) == last_alarms(tmp_path / "whole", 8) == {"always": 7}
    assert pinned_by(tmp_path / "killed", "guard") == pinned_by(tmp_path / "whole", "guard")


def test_alarms_of_what_a_run_has_gone_back_from_are_forgotten(tmp_path: Path) -> None:
    def line(rule: str, iteration: int, to: int | None = None) -> str:
        return json.dumps({"rule": rule, "iteration": iteration, "back_to": to}) + "\n"

    text = line("a", 100) + line("a", 400) + line("b", 450, 300) + line("b", 350) + '{"rule'
    (tmp_path / ALARMS).write_text(text)
    assert last_alarms(tmp_path, 1000) == {"a": 100, "b": 350}
    assert last_alarms(tmp_path, 320) == {"a": 100}


def test_few_checkpoints_are_kept_and_a_users_pin_is_not_touched(tmp_path: Path, dataset: Path) -> None:
    config = guarded(tmp_path, dataset, "guard.on_collapse=go_back", "guard.healthy_after=4", "train.iterations=12")
    trainer = Trainer(config, ALONE)
    for done in trainer.iterations():
        if done == 2:
            pinned = step_folder(tmp_path, 2)
            pinned.with_name("step-00000002.pinned").write_text("")  # in the place of the guard's own
    # 8 is healthy, 10 and 12 may turn out to be, and one that is not pinned is kept.
    assert pinned_by(tmp_path, "guard") == [8, 10, 12]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*") if p.is_dir()) == [
        f"step-{n:08d}" for n in (2, 6, 8, 10, 12)
    ]
    assert config.most_checkpoints == 1 + 4 + 1
    assert missing_room(config) == checkpoint_bytes(config) * (config.most_checkpoints - 4)  # 2 is not counted
    pin(step_folder(tmp_path, 2), "guard")
    assert is_pinned(step_folder(tmp_path, 2)) and pinned_by(tmp_path, "") == [2]


# Settings


@pytest.mark.parametrize(
    ("samples", "without", "told"),
    [
        (1, "[]", ["'alike' and 'constant data'"]),
        (1, "[alike]", ["'constant data'"]),
        (2, "[]", []),
    ],
)
def test_rules_that_a_rank_has_too_few_samples_for_are_told_at_the_start(
    tmp_path: Path, dataset: Path, caplog: Any, samples: int, without: str, told: list[str]
) -> None:
    batch = [f"train.global_batch={samples}", "train.micro_batch=1", "method.fake_pass=two_pass"]
    Trainer(guarded(tmp_path, dataset, *batch, f"guard.without={without}"), ALONE)
    found = [text for record in caplog.records if "never alarm" in (text := record.getMessage())]
    assert [text.split(" will ")[0] for text in found] == [f"warning: guard: {rules}" for rules in told]
    assert all("set train.global_batch=2 or more" in text for text in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["guard.without=[no gradient]"],
            "guard.without names 'no gradient', which is no rule: known are",
        ),
        ([WORSE], "guard.rules names evaluation/student_4/excess in 'worse', but train.evaluate_every=0"),
        (
            ["train.evaluate_every=3", "guard.on_collapse=go_back", "guard.healthy_after=5"],
            "guard.healthy_after=5 is less than two train.evaluate_every=3",
        ),
        (["guard.quiet=600"], "quiet=600 must not exceed healthy_after=2"),
        (["guard.on_collapse=panic"], "guard.on_collapse"),
        (["guard.rules={mine: {metric: gap}}"], "a rule on gap needs one of above and below"),
        (["guard.rules={mine: {metric: gap, above: 1, below: 0}}"], "a rule on gap needs one of above and below"),
        (
            [
                "method={name: flow_matching}",
                "discriminator={}",
                "head_optimizer=null",
                "guard.on_trouble=lower_head_rate",
            ],
            "guard.on_trouble=lower_head_rate, but method.name=flow_matching trains no heads",
        ),
    ],
)
def test_settings_that_mean_nothing_are_one_line(
    tmp_path: Path, dataset: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(LaddError) as refused:
        Trainer(guarded(tmp_path, dataset, *overrides), ALONE)
    assert message in str(refused.value) and "\n" not in str(refused.value)
