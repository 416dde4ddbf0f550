"""The guard's rules: each tells its own sickness, none a healthy run, whatever noise there is on its numbers."""

import random
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.config import GuardConfig, RuleConfig
from ladd_dist.evaluation.results import Estimate
from ladd_dist.training.rules import BASELINE_LEAST, BASELINE_ROWS, RULES, Alarm, alarm, rules_of

HEALTHY: dict[str, Any] = {
    "redrawn": 0.01,
    "skipped_share": 0.0,
    "x0_scale": 1.0,
    "x0_detail": 1.0,
    "x0_diversity": 1.0,
    "x0_shift": 0.1,
    "data_diversity": 0.78,
    "d_loss": 1.4,
    "head_spread": [1.0, 0.8, 1.2],
    "head_right": [0.7, 0.8, 0.75],
    "gap": 0.8,
    "fake_right": 0.75,
    "real_right": 0.75,
    "ema_follows": 0.2,
    "update_size": 0.01,
    "student_grad_norm": 2.0,
    "head_grad_norm": 1.5,
    "latent_grad_norm": 0.1,
    "evaluation/student/ratio": 0.4,
    "evaluation/student/excess": 10.0,
}
SICK: dict[str, Any] = {
    "not the teacher's": 1.4,
    "not finite": 1.0,
    "washed out": 0.6,
    "blurred": 0.5,
    "alike": 0.5,
    "too strong": 2.0,
    "noisy": 3.0,
    "shifted": 2.0,
    "constant data": 0.0,
    "saturated": 0.01,
    "thrown about": 14.0,
    "flat heads": [0.01, 0.02, 0.03],
    "mute heads": 0.0005,
    "dead head": [1.0, 0.0, 1.0],
    "certain heads": [0.99, 0.98, 1.0],
    "wide gap": 20.0,
    "all real": 0.0,
    "all fake": 0.0,
    "average astray": -0.1,
    "weights stand": 0.0,
    "weights leap": 0.9,
    "steep student": 50.0,
    "steep heads": 50.0,
    "weights run": 0.1,
    "worse than undistilled": 2.0,
    "better, then worse": 30.0,
}


def history(count: int, first: int = 10, noise: float = 0.0, seed: int = 0, **values: Any) -> list[dict[str, Any]]:
    """Rows, with every number times ``exp(noise * gauss)``; those of evaluations have intervals of as much noise."""
    rng = random.Random(seed)

    def shaken(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [shaken(key, v) for v in value]
        value *= 2.718281828 ** (noise * max(-3.0, min(3.0, rng.gauss(0, 1))))
        return measured(value, 2 * noise) if key.startswith("evaluation/") else value

    return [
        {"iteration": first + 10 * i, **{key: shaken(key, value) for key, value in (HEALTHY | values).items()}}
        for i in range(count)
    ]


def measured(value: float, share: float) -> Estimate:
    return Estimate(value=value, low=value * (1 - share), high=value * (1 + share))


def fires(rows: list[dict[str, Any]], since: int = 0) -> set[str]:
    return {name for name, rule in RULES.items() if alarm(name, rule, rows, since)}


def test_every_rule_has_a_sickness_here() -> None:
    assert set(SICK) == set(RULES) and {rule.metric for rule in RULES.values()} == set(HEALTHY)


@pytest.mark.parametrize("name", SICK)
def test_a_rule_tells_its_sickness_after_as_many_rows_as_it_takes(name: str) -> None:
    rule = RULES[name]
    good = history(40)
    needed = next(
        count
        for count in range(1, 40)
        if alarm(name, rule, good + history(count, first=410, **{rule.metric: SICK[name]}))
    )
    # The median turns with more than half of its window, and must then stay for the rule's patience.
    assert needed == rule.window // 2 + rule.patience


@given(st.integers(0, 2**32), st.sampled_from([20, 60, 150]))
def test_no_rule_alarms_on_a_healthy_run_with_noise(seed: int, count: int) -> None:
    rows = history(count, noise=0.08, seed=seed)
    assert not [name for end in range(1, count + 1, 7) for name in fires(rows[:end])]


def test_a_single_bad_row_is_no_alarm_but_for_three_rules() -> None:
    rows = history(40)
    for name, rule in RULES.items():
        spoilt = [*rows, *history(1, first=410, **{rule.metric: SICK[name]})]
        at_once = name in ("not the teacher's", "not finite", "thrown about")
        assert fires(spoilt) == ({name} if at_once else set())


def test_growth_over_a_whole_run_is_no_steep_gradient() -> None:
    """As on the digits: 0.3 at first and 6 at its end."""
    rows = [
        row | {"student_grad_norm": 0.3 * 20 ** (i / 200), "head_grad_norm": 0.4 * 7 ** (i / 200)}
        for i, row in enumerate(history(200))
    ]
    assert not {name for end in range(20, 201) for name in fires(rows[:end])}


def test_the_page_lists_every_rule_as_it_is() -> None:
    page = (ROOT / "docs/collapse.md").read_text()
    for name, rule in RULES.items():
        side, bound = ("above", rule.above) if rule.above is not None else ("below", rule.below)
        of = "" if rule.of == "number" else f" x {rule.of}"
        head = " of any head" if rule.entry == "least" else ""
        condition = f"`{rule.metric}`{head} {side} {bound:g}{of}; {rule.window}, {rule.patience}"
        assert f"| {name} | {condition} | {rule.severity} |" in page


# Conditions

FALL = RuleConfig(metric="x", below=0.5, of="baseline", window=1, patience=1)


def rows_of(values: list[float]) -> list[dict[str, Any]]:
    return [{"iteration": i + 1, "x": value} for i, value in enumerate(values)]


def test_a_baseline_is_of_rows_after_the_run_became_another() -> None:
    rows = rows_of([10.0] * 20 + [1.0] * 20)
    assert alarm("fall", FALL, rows) is not None
    assert alarm("fall", FALL, rows, since=20) is None
    assert alarm("fall", FALL, rows_of([1.0] * BASELINE_LEAST + [0.1]), 1) is None  # too few rows
    assert alarm("fall", FALL, rows_of([1.0] * BASELINE_LEAST + [0.1])) is not None


def test_a_baseline_moves_along_with_the_run() -> None:
    rows = rows_of([10.0] * BASELINE_ROWS + [1.0] * BASELINE_ROWS + [0.9])
    assert alarm("fall", FALL, rows) is None


def test_rows_that_did_not_record_a_number_are_passed_over() -> None:
    """An evaluation's distance, say, in every tenth row."""
    rule = RuleConfig(metric="distance", above=2.0, window=1, patience=2)
    rows = [row | ({"distance": 3.0} if row["iteration"] % 10 == 0 else {}) for row in rows_of([1.0] * 30)]
    assert alarm("far", rule, rows[:10]) is None
    assert alarm("far", rule, rows[:20]) == alarm("far", rule, rows) == Alarm("far", rule, 3.0, 2.0)
    assert alarm("far", rule, rows[:29]) is None  # nothing new in the newest row
    assert alarm("far", rule, []) is None


def test_an_alarm_says_what_is_beyond_what() -> None:
    found = alarm("fall", FALL, rows_of([2.0] * 20 + [0.5]))
    assert str(found) == "fall: x 0.5 is below 1 (by the run's own baseline)"


# Evaluations


def evaluations(*numbers: Estimate) -> list[dict[str, Any]]:
    return [{"iteration": 10 * (i + 1), "evaluation/student/excess": number} for i, number in enumerate(numbers)]


WORSE = RuleConfig(metric="evaluation/student/excess", above=1.5, of="best", window=1, patience=1)
FAR = RuleConfig(metric="evaluation/student/excess", above=1.0, window=1, patience=1)


def test_an_evaluation_is_beyond_a_bound_with_its_whole_interval() -> None:
    assert alarm("far", FAR, evaluations(measured(1.5, 0.5))) is None
    found = alarm("far", FAR, evaluations(measured(2.0, 0.25)))
    assert found is not None and found.value == 1.5
    assert str(found) == "far: evaluation/student/excess 1.5 is above 1 with its whole interval"
    assert alarm("far", FAR, evaluations(Estimate(value=1.1))) is not None  # of too few prompts for an interval
    near = RuleConfig(metric="evaluation/student/excess", below=1.0, window=1, patience=1)
    assert alarm("near", near, evaluations(measured(0.9, 0.2))) is None
    assert alarm("near", near, evaluations(measured(0.8, 0.2))) is not None


def test_a_student_that_was_better_is_told_from_one_that_is_not_good_yet() -> None:
    def worse(*values: float, share: float = 0.1, since: int = 0) -> bool:
        return alarm("worse", WORSE, evaluations(*(measured(v, share) for v in values)), since) is not None

    assert not worse(20) and not worse(20, 10, 14)
    assert worse(20, 10, 10, 19) and worse(20, 10, 13, 18)
    assert not worse(20, 10, 10, 19, share=0.4)  # the intervals, 6 to 14 and 11.4 to 26.6, overlap
    assert not worse(2, 10, 12, since=10), "the best of a warm-up is another run's"
    assert worse(2, 10, 12)


def test_a_best_near_zero_has_no_multiples_within_its_own_interval() -> None:
    best = Estimate(value=-0.1, low=-1.1, high=0.9)
    assert alarm("worse", WORSE, evaluations(best, Estimate(value=0.8, low=0.5, high=1.1))) is None
    assert alarm("worse", WORSE, evaluations(best, Estimate(value=2.0, low=1.0, high=3.0))) is not None
    falling = RuleConfig(metric="evaluation/student/excess", below=0.5, of="best", window=1, patience=1)
    assert alarm("read", falling, evaluations(measured(1.0, 0.1), measured(0.5, 0.1))) is None
    assert alarm("read", falling, evaluations(measured(1.0, 0.1), measured(0.4, 0.1))) is not None


def test_rules_are_added_replaced_and_left_out() -> None:
    mine = RuleConfig(metric="gap", above=1.0)
    rules = rules_of(GuardConfig(rules={"wide gap": mine, "far": mine}, without=["noisy"]))
    assert rules["wide gap"] == rules["far"] == mine
    assert set(rules) == set(RULES) - {"noisy"} | {"far"}
