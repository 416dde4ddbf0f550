"""What is logged: metrics averaged between two logging steps, and the console's line about them."""

import resource
import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.log import Eta, log, warn
from ladd_dist.methods.base import Metrics, rate, rate_key
from ladd_dist.methods.registry import method_of
from ladd_dist.training.tracking import MEMORY, Row


class MetricAverages:
    """Averages of the metrics between two logging steps.

    Metrics stay on the device until then: the loop never waits for them.
    """

    def __init__(self, config: Config, world: World, clock: Clock, done: int) -> None:
        self._config, self._world, self._clock, self._method = config, world, clock, method_of(config)
        self._rows: list[Metrics] = []
        self._streak = torch.zeros((), device=world.device)
        self._start = time.monotonic()
        self._eta = Eta(config.train.iterations)
        self._eta.begin(done)

    def add(self, metrics: Metrics) -> None:
        """Take one iteration's metrics, without looking at them."""
        self._rows.append(metrics)
        self._streak = (self._streak + 1) * metrics["skipped"]

    def row(self, done: int, factors: Mapping[str, float]) -> Row:
        """Average over iterations and ranks, print a line, and start anew.

        Skipped iterations are counted, and left out of the averages.

        Args:
            factors: of the trained networks' learning rates, see `Engine.rate_factor`.

        """
        train, count = self._config.train, len(self._rows)
        row: Row = {"iteration": done, **self._means()}
        row["samples_per_second"] = count * train.global_batch / (time.monotonic() - self._start)
        for network, section in self._method.OPTIMIZERS.items():
            row[rate_key(section)] = rate(self._config, section, done - 1, factors[network])
        row["seconds"] = {phase: total / count for phase, total in self._clock.seconds().items()}
        row |= memory_peaks(self._world)
        self._report(done, row)
        self._rows, self._start = [], time.monotonic()
        return row

    def check(self, done: int) -> None:
        """Check that the run goes on; call it after each row.

        Raises:
            LaddError: if too many iterations in a row were skipped.
        """
        if self._streak >= self._config.train.max_skipped:
            raise LaddError(
                f"training diverged: the last {int(self._streak)} iterations up to {done} had a non-finite loss or "
                f"gradient and were skipped: {self._method.REMEDY}; the last checkpoint is untouched"
            )

    def _means(self) -> Row:
        flags = torch.stack([row["skipped"] for row in self._rows]).tolist()
        kept = [row for row, skipped in zip(self._rows, flags, strict=True) if not skipped]
        columns: dict[str, list[Tensor]] = defaultdict(list)
        for row in kept:
            for key, value in row.items():
                columns[key].append(value)
        columns.pop("skipped", None)
        stacks = {key: torch.stack(values) for key, values in columns.items()}
        sums = [stack.nansum(0) for stack in stacks.values()]
        counts = [(~stack.isnan()).float().sum(0) for stack in stacks.values()]
        self._world.mean_([*sums, *counts])
        means = dict(zip(stacks, (s / n for s, n in zip(sums, counts, strict=True)), strict=True))
        # What was never measured, or is infinite, is left out: JSON has no NaN.
        finite = {key: value.tolist() for key, value in means.items() if value.isfinite().all()}
        return {"skipped": int(sum(flags)), "skipped_share": sum(flags) / len(flags), **finite}

    def _report(self, done: int, row: Row) -> None:
        if row["skipped"]:
            warn(f"{row['skipped']} iterations up to {done} skipped: non-finite loss or gradient")
        if row["skipped"] == len(self._rows):
            return
        log(
            f"{done:>6}/{self._config.train.iterations}  {self._method.line(row)}  "
            f"{row['samples_per_second']:.1f} img/s  eta {self._eta.left(done)}"
        )


def memory_peaks(world: World) -> Row:
    """Highest memory use so far in GiB, one entry per rank: of the host, and of the GPU where there is one."""
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]
    if world.device.type == "cuda":
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    columns = zip(*world.gather(peaks), strict=True)
    return dict(zip(MEMORY, map(list, columns), strict=False))
