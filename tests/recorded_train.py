"""`launchers/train.py` for torchrun, which notes its samples and is soon to tell when a rank is gone."""

import runpy
import time
from collections.abc import Iterator

from recorded import note_samples
from test_watchdog import LOWERED

from ladd_dist.supervision import watchdog
from ladd_dist.training.trainer import Trainer

TICK, DEAD_AFTER = 0.1, 5.0
PAUSE = 0.2
"""Seconds after an iteration: a run that waits for something to happen leaves it the processor."""


def miss_ranks_soon() -> None:
    """Lower the watchdog's limit once a trainer has got going."""
    watchdog.TICK, iterations = TICK, Trainer.iterations

    def lowering(self: Trainer) -> Iterator[int]:
        for count, done in enumerate(iterations(self), 1):
            if count == LOWERED:
                watchdog.DEAD_AFTER = DEAD_AFTER
            yield done
            time.sleep(PAUSE)

    Trainer.iterations = lowering  # type: ignore[method-assign]


if __name__ == "__main__":
    note_samples()
    miss_ranks_soon()
    runpy.run_path("launchers/train.py", run_name="__main__")
