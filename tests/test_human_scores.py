"""Answers to a blind page: read, merged, and made into win rates, Elo ratings and a chart."""

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from compared import prefers, run_launcher, save_answers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.sparse.csgraph import connected_components

from ladd_dist.errors import LaddError
from ladd_dist.human import answers
from ladd_dist.human.answers import Vote, read_votes
from ladd_dist.human.chart import draw_win_rates
from ladd_dist.human.elo import ELO, MEAN, places, ratings
from ladd_dist.human.scores import Scores, score, table
from ladd_dist.human.sets import Picture, PictureSet
from ladd_dist.human.trials import Key, Trial, pairs_of, plan
from ladd_dist.human.win_rates import WinRate, effective_number, wilson, win_rates

MODELS = ("student", "teacher", "base")
PROMPTS = 12
TITLE = "a <b>red</b> fox"


def key_of(*models: str, against: str | None = None, prompts: int = PROMPTS) -> Key:
    requests = {f"{TITLE} {n}, 32x32, {n}": Picture(Path("x.png"), f"{TITLE} {n}", None) for n in range(prompts)}
    sets = [PictureSet(model, f"{model}/", requests) for model in models]
    return plan(sets, pairs_of(sets, against))


@pytest.fixture(scope="module")
def key() -> Key:
    return key_of(*MODELS)


@pytest.fixture
def key_file(key: Key, tmp_path: Path) -> Path:
    path = tmp_path / "key.json"
    path.write_text(key.model_dump_json())
    return path


# Win rates


@given(st.floats(0, 1), st.floats(0.5, 1e5))
def test_the_interval_holds_the_rates_that_the_answers_do_not_rule_out(rate: float, number: float) -> None:
    low, high = wilson(rate, number)
    assert 0 <= low <= rate <= high <= 1 and low < high
    for bound in {low, high} - {0.0, 1.0}:
        deviation = abs(rate - bound) / math.sqrt(bound * (1 - bound) / number)
        assert deviation == pytest.approx(1.96, abs=1e-3) or min(bound, 1 - bound) < 1e-9, "by its definition"
    assert wilson(1 - rate, number) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.lists(st.integers(1, 50), min_size=1))
def test_answers_about_one_prompt_are_worth_no_more_than_one(ratings_each: list[int]) -> None:
    number = effective_number(ratings_each)
    assert 1 <= number <= len(ratings_each) + 1e-9
    assert effective_number([3] * len(ratings_each)) == len(ratings_each)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@given(choices=st.lists(st.sampled_from(["left", "right", "tie", None]), min_size=24, max_size=24))
def test_rates_count_every_answer_once_whichever_side_it_was_on(scratch: Path, choices: list[str | None]) -> None:
    key, chosen = key_of("student", "teacher"), iter(choices)
    given_choices = {trial.id: next(chosen) for trial in key.trials}
    path = save_answers(scratch / "a.json", key, "ann", lambda trial: given_choices[trial.id])
    if not any(choices):
        with pytest.raises(LaddError, match="no answers in"):
            read_votes(key, [path])
        return
    scores = score(key, read_votes(key, [path]), resamples=20)
    for rate in scores.win_rates:
        mine = [t for t in key.trials if t.question == rate.question and given_choices[t.id]]
        won = sum(prefers("student")(t) == given_choices[t.id] for t in mine)
        even = sum(given_choices[t.id] == "tie" for t in mine)
        assert (rate.wins, rate.ties, rate.losses) == (won, even, len(mine) - won - even)
        assert rate.rate == pytest.approx((won + even / 2) / len(mine))
        assert rate.requests == rate.effective == len(mine)


def test_more_raters_of_the_same_pictures_make_no_more_pictures(key: Key, tmp_path: Path) -> None:
    def choose(trial: Trial) -> str:
        return prefers("student")(trial) if hash_of(trial) % 3 else "tie"

    def hash_of(trial: Trial) -> int:
        return int(trial.request.rpartition(" ")[2])

    paths = [save_answers(tmp_path / f"{n}.json", key, f"rater {n}", choose) for n in range(4)]
    one, four = (score(key, read_votes(key, paths[:n]), resamples=20).win_rates[0] for n in (1, 4))
    assert (one.raters, four.raters) == (1, 4) and four.wins == 4 * one.wins
    assert (one.low, one.high) == pytest.approx((four.low, four.high))


def seeds_of(prompts: int, seeds: int) -> Key:
    """Two models' pictures of every prompt from several seeds each."""
    drawn = [(f"a fox {n}", seed) for n in range(prompts) for seed in range(seeds)]
    requests = {f"{prompt}, 32x32, {seed}": Picture(Path("x.png"), prompt, None) for prompt, seed in drawn}
    sets = [PictureSet(model, f"{model}/", requests) for model in ("student", "teacher")]
    return plan(sets, pairs_of(sets, None))


def test_more_seeds_of_the_same_prompts_make_no_more_prompts(tmp_path: Path) -> None:
    """Where the prompt decides, eight seeds of it say what one says: in win rates as in Elo ratings."""

    def scores_of(seeds: int) -> Scores:
        key = seeds_of(16, seeds)
        answers = save_answers(tmp_path / f"{seeds}.json", key, "ann", lambda t: prefers(winner[str(t.prompt)])(t))
        return score(key, read_votes(key, [answers]))

    winner = {f"a fox {n}": "teacher" if n < 5 else "student" for n in range(16)}
    one, eight = scores_of(1), scores_of(8)
    for few, many in zip(one.win_rates, eight.win_rates, strict=True):
        assert (few.requests, many.requests, many.wins) == (16, 128, 88)
        assert many.effective == few.effective == 16
        assert (many.rate, many.low, many.high) == (few.rate, few.low, few.high)
    rating = next(r for r in eight.ratings if r.model == "student")
    assert rating.low is not None and rating.high is not None
    elo = [1 / (1 + 10 ** ((MEAN - end) / 200)) for end in (rating.low, rating.high)]
    assert (eight.win_rates[0].low, eight.win_rates[0].high) == pytest.approx(elo, abs=0.1), "as a rate of two models"


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_interval_covers_a_rate_that_differs_from_prompt_to_prompt(spread: float) -> None:
    """95% of intervals and more hold the rate, 1/2, of prompts whose own rates are drawn from a beta distribution."""
    draw, key, held = np.random.default_rng(0), seeds_of(32, 4), 0
    asked = [(trial.request, str(trial.prompt)) for trial in key.trials if trial.question == "quality"]
    for _ in range(400):
        chances = {f"a fox {n}": chance for n, chance in enumerate(draw.beta(spread, spread, 32))}
        won = [float(draw.random() < chances[prompt]) for _, prompt in asked]
        (found,) = win_rates(
            key, [Vote("ann", "quality", *MODELS[:2], *of, value) for of, value in zip(asked, won, strict=True)]
        )
        held += found.low <= 0.5 <= found.high
    assert held >= 0.95 * 400


# Elo

COUNTS = st.integers(2, 5).flatmap(lambda m: arrays(np.int64, (m, m), elements=st.integers(0, 12)))


def tournament(counts: np.ndarray) -> np.ndarray:
    """Halves of answers, none against oneself."""
    wins = counts / 2
    np.fill_diagonal(wins, 0)
    return wins


@given(COUNTS)
def test_ratings_are_the_most_likely_ones(counts: np.ndarray) -> None:
    """Where the likelihood is highest, every model is expected to win as often as it did."""
    wins = tournament(counts + 1)
    found = ratings(wins)
    assert found.mean() == pytest.approx(MEAN)
    expected = (wins + wins.T) / (1 + np.exp((found[None, :] - found[:, None]) / ELO))
    assert expected.sum(axis=1) == pytest.approx(wins.sum(axis=1), rel=1e-6)
    assert ratings(np.stack([wins, 7 * wins])) == pytest.approx(np.stack([found, found]), abs=1e-4)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5))
def test_ratings_find_the_strengths_that_made_the_answers(logs: list[float]) -> None:
    strengths = np.exp(logs)
    wins = 100 * strengths[:, None] / (strengths[:, None] + strengths[None, :])
    np.fill_diagonal(wins, 0)
    assert ratings(wins) == pytest.approx(MEAN + ELO * (np.array(logs) - np.mean(logs)), abs=1e-3)


def test_400_points_are_odds_of_ten() -> None:
    better, worse = ratings(np.array([[0.0, 100.0], [10.0, 0.0]]))
    assert better - worse == pytest.approx(400)


@given(COUNTS)
def test_models_are_rated_where_chains_of_wins_lead_both_ways(counts: np.ndarray) -> None:
    wins = tournament(np.where(counts > 6, counts, 0))
    stand = places(wins)
    _, label = connected_components(wins > 0, connection="strong")
    largest = np.bincount(label).max()
    rated = [m for m, place in enumerate(stand) if place.rated]
    assert len(rated) == (largest if largest > 1 else 0)
    assert len({label[m] for m in rated}) <= 1
    assert all(bool(place.why) != place.rated for place in stand)
    if rated:
        assert np.isfinite(ratings(wins[np.ix_(rated, rated)])).all()


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(2, 0), (2, 1)], "it never lost to the others"),
        ([(0, 2), (1, 2)], "it never won against the others"),
        ([], "nothing compares it with the others"),
    ],
)
def test_who_has_no_finite_rating_is_told_why(pairs: list[tuple[int, int]], why: str) -> None:
    wins = np.zeros((3, 3))
    for better, worse in [(0, 1), (1, 0), *pairs]:
        wins[better, worse] = 3
    assert [(place.rated, place.why) for place in places(wins)] == [(True, ""), (True, ""), (False, why)]


def test_two_models_of_which_one_always_wins_have_no_ratings(tmp_path: Path) -> None:
    key = key_of("student", "teacher")
    votes = read_votes(key, [save_answers(tmp_path / "a.json", key, "ann", prefers("student"))])
    scores = score(key, votes)
    assert {(r.model, r.elo, r.why) for r in scores.ratings} == {
        ("student", None, "it never lost to the others"),
        ("teacher", None, "it never won against the others"),
    }
    assert [line.split(maxsplit=2)[2] for line in table(scores)[-4:-2]] == [
        "none: it never lost to the others",
        "none: it never won against the others",
    ]
    assert all(rate.rate == 1 and rate.low < 1 for rate in scores.win_rates)


def test_intervals_come_of_prompts_drawn_again(key: Key, tmp_path: Path) -> None:
    """Two of three prompts go to the better one: so many and no more, however many raters say the same."""
    order = ["student", "teacher", "base"]

    def choose(trial: Trial) -> str:
        number = int(trial.request.rpartition(" ")[2])
        better = min((trial.left, trial.right), key=order.index)
        if number % 3 == 0:
            better = max((trial.left, trial.right), key=order.index)
        return prefers(better)(trial)

    paths = [save_answers(tmp_path / f"{n}.json", key, f"rater {n}", choose) for n in range(3)]
    one, three = (score(key, read_votes(key, paths[:n]), resamples=200) for n in (1, 3))
    assert [r.model for r in one.ratings] == order * 2
    for few, many in zip(one.ratings, three.ratings, strict=True):
        assert few.low is not None and few.high is not None and few.elo is not None
        assert few.low <= few.elo <= few.high or few.low == pytest.approx(few.high)
        assert (few.elo, few.low, few.high) == pytest.approx((many.elo, many.low, many.high), abs=1e-3)
    assert one.ratings[0].elo > one.ratings[1].elo > one.ratings[2].elo

    other = key_of(*MODELS)  # asks the same in another order
    answers = save_answers(tmp_path / "other.json", other, "rater 0", choose)
    assert score(other, read_votes(other, [answers]), resamples=200).ratings == one.ratings


# Files of answers


def test_a_raters_files_are_one_and_contradictions_give_no_vote(key: Key, tmp_path: Path) -> None:
    first = save_answers(tmp_path / "1.json", key, "ann", lambda t: "left" if t in key.trials[:20] else None)
    second = save_answers(
        tmp_path / "2.json", key, " ann ", lambda t: "tie" if t == key.trials[3] else prefers(t.left)(t)
    )
    other = save_answers(tmp_path / "3.json", key, "ben", lambda t: "right")
    votes = read_votes(key, [first, second, other])
    assert votes.contradictions == 1 and votes.files == [first, second, other]
    assert len(votes.votes) == 2 * len(key.trials) - 1
    scores = score(key, votes, resamples=20)
    assert (scores.raters, scores.answers, scores.contradictions) == (2, len(votes.votes), 1)


def test_text_that_was_copied_into_an_editor_counts(key: Key, tmp_path: Path) -> None:
    path = save_answers(tmp_path / "a.txt", key, "ann", prefers("student"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    assert len(read_votes(key, [path]).votes) == len(key.trials)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path, key: path.write_text(path.read_text()[:-40]), "bad.json are cut short or no file of the page"),
        (lambda path, key: path.write_text("[1, 2]"), "bad.json are cut short or no file of the page"),
        (lambda path, key: path.write_bytes(b"\x89PNG"), "bad.json are cut short or no file of the page"),
        (lambda path, key: path.unlink(), "bad.json cannot be read (No such file or directory)"),
        (
            lambda path, key: save_answers(path, key, "eve", prefers("base"), page="f" * 16),
            f"bad.json are of another page ({'f' * 16}, and the key is of ",
        ),
        (
            lambda path, key: save_answers(path, key, "eve", prefers("base"), answers={"abc": "left"}),
            "bad.json were changed: the page does not ask abc",
        ),
        (
            lambda path, key: save_answers(path, key, "eve", prefers("base"), answers={key.trials[0].id: "middle"}),
            "bad.json are cut short or no file of the page",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_the_others_count(
    damage: Callable[[Path, Key], object],
    said: str,
    key: Key,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = save_answers(tmp_path / "good.json", key, "ann", prefers("student"))
    bad = save_answers(tmp_path / "bad.json", key, "eve", prefers("base"))
    damage(bad, key)
    said_of = list[str]()
    monkeypatch.setattr(answers, "warn", said_of.append)
    votes = read_votes(key, [bad, good])
    (line,) = said_of
    assert line.startswith(f"answers {tmp_path}/{said}") and line.endswith("it is left out")
    assert votes.files == [good] and len(votes.votes) == len(key.trials)
    with pytest.raises(SystemExit) as ended:
        run_launcher("score.py", "--key", str(key_file), "--out", str(tmp_path / "out"), str(bad))
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: no answers in {bad}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read (No such file or directory)"), ('{"version": 1', "is cut short or is none")],
)
def test_a_key_that_cannot_be_used_is_named(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        run_launcher("score.py", "--key", str(path), "--out", str(tmp_path / "out"), "a.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"error: key {path} {said}")


# What is written


@pytest.mark.parametrize("name", ["$\\frac$", "costs $5", "a very long name of a model that goes on and on"])
@pytest.mark.parametrize("rate", [0.0, 0.03, 1.0])
def test_the_chart_takes_any_name_and_rate(name: str, rate: float, tmp_path: Path) -> None:
    low, high = wilson(rate, 128)
    counts = {"wins": 0, "ties": 0, "losses": 0, "requests": 128, "raters": 1, "effective": 128}
    drawn = WinRate(question="alignment", model="student", rival=name, rate=rate, low=low, high=high, **counts)
    draw_win_rates([drawn], 1, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert min(chart.size) > 500


def test_the_launcher_writes_numbers_and_the_chart(
    key: Key, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(trial: Trial) -> str | None:
        return "tie" if trial == key.trials[0] else prefers("student")(trial)

    paths = [save_answers(tmp_path / f"{n}.json", key, n, choose) for n in ("ann", "ben")]
    for _ in range(2):  # its own folder it replaces
        run_launcher("score.py", "--key", str(key_file), "--out", str(tmp_path / "out"), *map(str, paths))
    shown = capsys.readouterr().out
    assert f"{4 * 36} answers of {4 * 36}, 2 raters, 2 files" in shown and "student over teacher" in shown
    scores = Scores.model_validate_json((tmp_path / "out" / "scores.json").read_bytes())
    assert [(r.question, r.model, r.rival) for r in scores.win_rates] == [
        (question, *pair) for question in ("quality", "alignment") for pair in combinations(MODELS, 2)
    ]
    with Image.open(tmp_path / "out" / "win_rates.png") as chart:
        assert min(chart.size) > 500
    assert json.loads((tmp_path / "out" / ".ladd_dist.json").read_text())["kind"] == "scores"
