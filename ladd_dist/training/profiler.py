"""A torch.profiler trace of some iterations, configured beforehand or asked for while the job runs."""

from pathlib import Path

import torch

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.log import log


class Profiler:
    """Writes ``run_dir/profile/step-00000120-rank-00003.json.gz``, for chrome://tracing or Perfetto."""

    def __init__(self, config: Config, world: World) -> None:
        self._profile, self._rank = config.profile, world.rank
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        if world.device.type == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._folder = Path(config.run_dir) / "profile"
        self._trace: torch.profiler.profile | None = None
        self._end = 0

    def step(self, done: int, asked: bool) -> None:
        """Before the iteration after ``done`` finished ones: start the trace if it is due, end it if it is full."""
        if self._trace is not None and done >= self._end:
            self.close()
        if self._trace is None and (asked or done == self._profile.start):
            self._first, self._end = done, done + self._profile.iterations
            self._trace = torch.profiler.profile(activities=self._activities, record_shapes=True)
            self._trace.start()

    def close(self) -> None:
        """Write the trace that is running, if one is."""
        if self._trace is None:
            return
        self._trace.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{self._first:08d}-rank-{self._rank:05d}.json.gz"
        self._trace.export_chrome_trace(str(path))
        self._trace = None
        log(f"wrote {path}")
