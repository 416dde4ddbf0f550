"""What a person sees while a launcher runs: lines and progress bars with ETA, from rank 0 alone."""

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from ladd_dist.distributed.world import World

_LOGGER = logging.getLogger("ladd_dist")
_REDRAW_SECONDS = 10.0
"""Bars that go to a file instead of a terminal are written this seldom."""


def setup(world: "World") -> None:
    """Send lines to stderr, stamped with the time; other ranks stay silent below warnings."""
    from diffusers.utils import logging as diffusers_logging  # late: it imports torch, and renderers of jobs do not

    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO if world.is_main else logging.WARNING)
    _LOGGER.propagate = False
    # Libraries warn about what is normal here, and draw bars of their own.
    logging.getLogger().setLevel(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    # Of each prompt that is too long, with its text: `drawing.pipeline.tell_cut` counts them.
    diffusers_logging.set_verbosity_error()
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


def log(message: str) -> None:
    """One line."""
    _LOGGER.info(message)


def warn(message: str) -> None:
    """One line that any rank may print."""
    _LOGGER.warning("warning: %s", message)


def progress(name: str, total: int, unit: str, world: "World", done: int = 0) -> "tqdm[Any]":
    """A bar with rate and ETA. ``done`` of ``total`` were there before."""
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        disable=not world.is_main,
        dynamic_ncols=True,
        mininterval=_REDRAW_SECONDS if quiet else 0.2,
    )


class _BarSafeHandler(logging.Handler):
    """Writes lines above the bars that are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Eta:
    """Remaining time of a loop from its recent speed."""

    def __init__(self, total: int) -> None:
        self._total, self._start, self._first = total, time.monotonic(), 0

    def begin(self, done: int) -> None:
        """Start the clock at ``done`` finished steps."""
        self._start, self._first = time.monotonic(), done

    def left(self, done: int) -> str:
        """``h:mm:ss`` until the end, after ``done`` steps."""
        rate = (time.monotonic() - self._start) / max(1, done - self._first)
        seconds = int(rate * (self._total - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
