"""Learning rates as a pure function of the iteration, so that a schedule has no state to save."""

import math
from collections.abc import Iterable

from ladd_dist.config import Config, OptimizerConfig


def learning_rate(config: OptimizerConfig, iteration: int, iterations: int) -> float:
    """Rate of the update at ``iteration`` (from 0) out of ``iterations``: linear warm-up, then the decay."""
    warmup = config.warmup_iterations
    if iteration < warmup:
        return config.lr * (iteration + 1) / warmup
    if config.decay == "constant":
        return config.lr
    progress = (iteration - warmup) / max(1, iterations - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def rate_changes(before: Config, now: Config, iteration: int, sections: Iterable[str]) -> str | None:
    """How the rates of the update at ``iteration`` differ between two configurations of a run, or None if they agree.

    A cosine stretches with ``train.iterations``: a run that is extended near its end goes on at a higher rate.

    Args:
        sections: names of the optimizers' sections.
    """
    changes = []
    for name in sections:
        old, new = (learning_rate(getattr(c, name), iteration, c.train.iterations) for c in (before, now))
        if old != new:
            changes.append(f"{name} {old:.6g} -> {new:.6g}")
    if not changes:
        return None
    lengths = " -> ".join(str(count) for count in dict.fromkeys((before.train.iterations, now.train.iterations)))
    return f"learning rates change at iteration {iteration} (train.iterations {lengths}): {', '.join(changes)}"
