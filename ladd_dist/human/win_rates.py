"""How often a model is preferred to a rival, and how sure that is."""

import math
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel

from ladd_dist.human.answers import LOST, TIED, WON, Vote
from ladd_dist.human.trials import Key

_Z = 1.959963984540054
"""The normal distribution's 97.5% quantile: intervals cover 95%."""


class WinRate(BaseModel):
    """A model against a rival in one question.

    ``rate`` in [0, 1] counts a tie as half, ``low`` to ``high`` is its 95% interval, and ``effective`` the number of
    independent answers that the given ones are worth.
    """

    question: str
    model: str
    rival: str
    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    requests: int
    raters: int
    effective: float


def win_rates(key: Key, votes: Sequence[Vote]) -> list[WinRate]:
    """Of every question and pair that has votes, in the key's order."""
    questions = dict.fromkeys(trial.question for trial in key.trials)
    rates = []
    for question in questions:
        for model, rival in key.pairs:
            mine = [v for v in votes if (v.question, v.model, v.rival) == (question, model, rival)]
            if mine:
                rates.append(_win_rate(question, model, rival, mine))
    return rates


def _win_rate(question: str, model: str, rival: str, votes: Sequence[Vote]) -> WinRate:
    scores, prompts = Counter(vote.score for vote in votes), Counter(vote.group for vote in votes)
    rate, effective = sum(vote.score for vote in votes) / len(votes), effective_number(list(prompts.values()))
    low, high = wilson(rate, effective)
    return WinRate(
        question=question,
        model=model,
        rival=rival,
        rate=rate,
        low=low,
        high=high,
        wins=scores[WON],
        ties=scores[TIED],
        losses=scores[LOST],
        requests=len({vote.request for vote in votes}),
        raters=len({vote.rater for vote in votes}),
        effective=effective,
    )


def effective_number(answers: Sequence[int]) -> float:
    """Independent answers that those about prompts are worth: ``(sum m)^2 / sum m^2`` of m answers each.

    What is preferred depends on the prompt, whose pictures from several seeds are much alike, and raters of the same
    two pictures mostly agree: a prompt that many answers are about is still one prompt. This is Kish's effective
    sample size (Survey Sampling, 1965), at its most cautious.
    """
    return sum(answers) ** 2 / sum(m * m for m in answers)


def wilson(rate: float, number: float) -> tuple[float, float]:
    """The 95% score interval of a rate in [0, 1] from that many answers (Wilson 1927): in [0, 1], around the rate."""
    shrunk = 1 + _Z * _Z / number
    centre = (rate + _Z * _Z / (2 * number)) / shrunk
    half = _Z * math.sqrt(rate * (1 - rate) / number + _Z * _Z / (4 * number * number)) / shrunk
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return min(low, rate), max(high, rate)  # which rounding may have left outside
