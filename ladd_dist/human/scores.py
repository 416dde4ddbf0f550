"""What all answers to a page say: win rates and Elo ratings with intervals, as numbers and as lines of text."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from ladd_dist.human.answers import Vote, Votes
from ladd_dist.human.elo import places, ratings, reached
from ladd_dist.human.trials import Key
from ladd_dist.human.win_rates import WinRate, win_rates

RESAMPLES = 1000
_SPARE = 0.05
"""Share of resamples without finite ratings up to which the others make an interval."""


class Rating(BaseModel):
    """A model's Elo in one question. None where there is no finite one, ``why`` says why; the bounds of the 95%
    interval are None if too many resamples have none."""

    question: str
    model: str
    elo: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""


class Scores(BaseModel):
    """``scores.json``."""

    page: str
    raters: int
    answers: int
    files: list[str]
    contradictions: int
    win_rates: list[WinRate]
    ratings: list[Rating]
    """By question, best first, those without a finite rating last."""


def score(key: Key, votes: Votes, resamples: int = RESAMPLES) -> Scores:
    """Rates and ratings of every question that has answers."""
    questions = dict.fromkeys(trial.question for trial in key.trials)
    found = [[vote for vote in votes.votes if vote.question == question] for question in questions]
    return Scores(
        page=key.page,
        raters=len({vote.rater for vote in votes.votes}),
        answers=len(votes.votes),
        files=[str(path) for path in votes.files],
        contradictions=votes.contradictions,
        win_rates=win_rates(key, votes.votes),
        ratings=[rating for mine in found if mine for rating in _ratings(list(key.sets), mine, resamples)],
    )


def _ratings(models: list[str], votes: Sequence[Vote], resamples: int) -> list[Rating]:
    wins = _wins(models, votes)
    stand = places(wins.sum(axis=0))
    rows = [
        Rating(question=votes[0].question, model=model, elo=None, why=place.why)
        for model, place in zip(models, stand, strict=True)
    ]
    if rated := [m for m, place in enumerate(stand) if place.rated]:
        among = wins[:, rated][:, :, rated]
        low, high = _interval(among, resamples)
        for m, *numbers in zip(rated, ratings(among.sum(axis=0)), low, high, strict=True):
            rows[m].elo, rows[m].low, rows[m].high = (float(n) if np.isfinite(n) else None for n in numbers)
    return sorted(rows, key=lambda row: (row.elo is None, -(row.elo or 0.0)))


def _interval(wins: np.ndarray, resamples: int) -> np.ndarray:
    """The 95% interval of every model's rating, ``(2, M)``: all answers about a prompt are drawn together."""
    drawn = np.random.default_rng(0).multinomial(len(wins), [1 / len(wins)] * len(wins), resamples)
    again = np.einsum("rp,pij->rij", drawn.astype(float), wins)
    again = again[reached(again).all(axis=(1, 2))]
    if len(again) < (1 - _SPARE) * resamples:
        return np.full((2, wins.shape[-1]), np.nan)
    return np.quantile(ratings(again), [0.025, 0.975], axis=0)


def _wins(models: list[str], votes: Sequence[Vote]) -> np.ndarray:
    """Answers for one model against another by prompt, ``(prompts, M, M)`` fp64, in the prompts' own order.

    What is drawn again then hangs on no page's shuffled order and on no order of the files.
    """
    groups = {group: p for p, group in enumerate(sorted({vote.group for vote in votes}))}
    wins = np.zeros((len(groups), len(models), len(models)))
    for vote in votes:
        i, j, p = models.index(vote.model), models.index(vote.rival), groups[vote.group]
        wins[p, i, j] += vote.score
        wins[p, j, i] += 1 - vote.score
    return wins


def table(scores: Scores) -> list[str]:
    """The scores as lines of text."""
    names = [f"{r.model} over {r.rival}" for r in scores.win_rates]
    width = max(map(len, [*names, *(r.model for r in scores.ratings)])) + 2
    lines = [
        f"{'':11}{'':{width}}{'win rate':>9}{'95%':>16}{'won':>7}{'even':>6}{'lost':>6}{'pairs':>7}{'raters':>8}"
    ]
    for r, name in zip(scores.win_rates, names, strict=True):
        interval = f"{100 * r.low:.1f} to {100 * r.high:.1f}"
        lines.append(
            f"{r.question:11}{name:{width}}{100 * r.rate:>8.1f}%{interval:>16}{r.wins:>7}{r.ties:>6}{r.losses:>6}"
            f"{r.requests:>7}{r.raters:>8}"
        )
    lines += ["", f"{'':11}{'':{width}}{'Elo':>9}{'95%':>16}"]
    for rating in scores.ratings:
        start = f"{rating.question:11}{rating.model:{width}}"
        if rating.elo is None:
            lines.append(f"{start}     none: {rating.why}")
            continue
        interval = "too few" if rating.low is None else f"{rating.low:.0f} to {rating.high:.0f}"
        lines.append(f"{start}{rating.elo:>9.0f}{interval:>16}")
    return lines
