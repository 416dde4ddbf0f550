"""Where an iteration's time goes, phase by phase, without making the device wait."""

import time
from collections import defaultdict

import torch

from ladd_dist.distributed.world import World


class Clock:
    """Attributes time to the phase that was marked last, and tells the watchdog where this rank stands.

    On a GPU a mark records an event on the stream, and times are read when `seconds` is called; on the CPU it
    reads the time. Phases show as ranges in profiler traces.
    """

    def __init__(self, world: World) -> None:
        self._cuda, self._position = world.device.type == "cuda", world.position
        self.iteration = 0
        """The iteration that is under way, counted from 1; 0 is the start of the run."""
        self.phase = "start"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._range: torch.profiler.record_function | None = None

    def mark(self, phase: str) -> None:
        """Begin a phase: the time until the next mark counts for it."""
        self.phase = phase
        self._position.enter(self.iteration, phase)
        self._marks.append((phase, self._now()))
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = torch.profiler.record_function(phase)
        self._range.__enter__()

    def _now(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last call; waits for the device."""
        if not self._marks:
            return {}
        last = (self.phase, self._now())
        self._marks.append(last)
        total: dict[str, float] = defaultdict(float)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            total[phase] += _elapsed(start, end)
        self._marks = [last]
        return dict(total)


def _elapsed(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return start.elapsed_time(end) / 1000
