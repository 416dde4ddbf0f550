"""What is logged: metrics averaged between two logging steps, and the console's line about them."""

import time

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed import World
from ladd_dist.errors import LaddError
from ladd_dist.ladd import Metrics
from ladd_dist.log import Eta, log
from ladd_dist.schedule import learning_rate
from ladd_dist.tracking import Row


class Window:
    """Metrics between two logging steps, kept on the device: the loop never waits for them in between."""

    def __init__(self, config: Config, world: World, done: int) -> None:
        self._config, self._world = config, world
        self._rows: list[Metrics] = []
        self._start = time.monotonic()
        self._eta = Eta(config.train.iterations)
        self._eta.begin(done)

    def add(self, metrics: Metrics) -> None:
        """Take one iteration's metrics, without looking at them."""
        self._rows.append(metrics)

    def close(self, done: int) -> Row:
        """Average over iterations and ranks, print a line, and start anew.

        Raises:
            LaddError: if training has diverged.
        """
        means: dict[str, Tensor] = {k: torch.stack([r[k] for r in self._rows]).mean(0) for k in self._rows[0]}
        self._world.mean_(list(means.values()))
        seconds = time.monotonic() - self._start
        train = self._config.train
        row: Row = {"iteration": done, **{key: value.tolist() for key, value in means.items()}}
        row["samples_per_second"] = len(self._rows) * train.global_batch / seconds
        row["student_lr"] = learning_rate(self._config.student_optimizer, done - 1, train.iterations)
        row["head_lr"] = learning_rate(self._config.head_optimizer, done - 1, train.iterations)
        if self._world.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not all(torch.isfinite(value).all() for value in means.values()):
            raise LaddError(
                f"training diverged near iteration {done} (non-finite values): lower student_optimizer.lr or "
                "head_optimizer.lr, or raise method.r1_weight; the last checkpoint is untouched"
            )
        gap = float(means["real_logit"].mean() - means["fake_logit"].mean())
        log(
            f"{done:>6}/{train.iterations}  d {row['d_loss']:.3f}  g {row['g_loss']:+.3f}  gap {gap:.3f}  "
            f"|g| {row['student_grad_norm']:.2e}  {row['samples_per_second']:.1f} img/s  eta {self._eta.left(done)}"
        )
        self._rows, self._start = [], time.monotonic()
        return row
