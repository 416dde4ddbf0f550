"""An iteration as passes of its networks, for what is reckoned before anything is built."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Gradient = Literal["none", "weights", "inputs"]
"""What the backward pass that belongs to a forward pass reaches: there is none, or the weights, or inputs alone."""


@dataclass(frozen=True)
class Pass:
    """One forward pass over a micro-batch, and the backward pass of its graph.

    Attributes:
        network: its name in `Networks`.
        gradient: what the backward pass reaches. The student's, and one to the inputs, runs at the end of the
            micro-batch, the last forward pass's first; any other at once.
        features: whether it ends after the last tapped block and gives features, not velocity.
        adapter: whether adapters count.
        samples: how many latents it has for each sample of the micro-batch.
        at_once: how many heads run together, the others when those are done; None is all.
        twice: whether the gradient is differentiated once more.
    """

    network: str
    gradient: Gradient = "none"
    features: bool = False
    adapter: bool = True
    samples: int = 1
    at_once: int | None = None
    twice: bool = False


def runs(passes: Iterable[Pass]) -> Counter[str]:
    """How often each network runs, forward or backward."""
    count: Counter[str] = Counter()
    for each in passes:
        count[each.network] += 1 + (each.gradient != "none")
    return count
