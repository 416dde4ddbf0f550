"""Elo ratings of several models at once: the most likely strengths of the Bradley-Terry model.

Unlike Elo's running update they depend on no order of the answers. With ``w[i, j]`` answers for i against j (a tie
is half for each), the likelihood has one finite maximum, up to a common shift, if and only if every model is reached
from every other by a chain of ``w > 0`` (Ford 1957); Hunter's MM iteration finds it (Annals of Statistics 2004).
"""

import math
from typing import NamedTuple

import numpy as np

ELO = 400 / math.log(10)
"""Points by which a model that is preferred ``e`` to 1 is ahead."""
MEAN = 1000.0
"""Of the rated models."""
_NEAR = 1e-10
"""Largest change of a log strength in a turn that ends the iteration."""


class Place(NamedTuple):
    """Where a model stands: in the group that has finite ratings, or why it does not."""

    rated: bool
    why: str


def reached(wins: np.ndarray) -> np.ndarray:
    """Which models are reached from which by chains of wins, itself included, ``(..., M, M)`` bool."""
    count = wins.shape[-1]
    chains = (wins > 0) | np.eye(count, dtype=bool)
    for _ in range(max(1, count - 1).bit_length()):
        chains = chains @ chains
    return chains


def places(wins: np.ndarray) -> list[Place]:
    """Which models have finite ratings: the largest group of which every model is reached from every other.

    Args:
        wins: ``(M, M)``.
    """
    chains = reached(wins)
    both = chains & chains.T
    group = both[int(both.sum(axis=1).argmax())]
    if group.sum() < 2:
        group = np.zeros_like(group)
    return [Place(bool(group[m]), "" if group[m] else _why(chains, group, m)) for m in range(len(wins))]


def _why(chains: np.ndarray, group: np.ndarray, model: int) -> str:
    others = group if group.any() else np.arange(len(chains)) != model
    above, below = chains[model, others].any(), chains[others, model].any()
    if above and not below:
        return "it never lost to the others"
    if below and not above:
        return "it never won against the others"
    return "no chain of answers both ways joins it to the others" if above else "nothing compares it with the others"


def ratings(wins: np.ndarray) -> np.ndarray:
    """Ratings of models of which every one is reached from every other, mean 1000.

    Args:
        wins: ``(..., M, M)`` fp64, of several tournaments at once.

    Returns:
        ``(..., M)`` fp64.
    """
    games, won = wins + np.swapaxes(wins, -1, -2), wins.sum(axis=-1)
    strength, change = np.ones_like(won), np.inf
    while change > _NEAR:  # the likelihood rises with every turn, and has a maximum
        expected = (games / (strength[..., :, None] + strength[..., None, :])).sum(axis=-1)
        new = won / expected
        new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        strength, change = new, np.abs(np.log(new / strength)).max()
    return MEAN + ELO * np.log(strength)
