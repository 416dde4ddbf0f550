"""Learning rates as a pure function of the iteration, so that a schedule has no state to save."""

import math

from ladd_dist.config import OptimizerConfig


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
