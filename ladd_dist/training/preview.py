"""Picture sheets of the student while it trains: the same held-out prompts and noise every time."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.prompts import first_of_each_bucket, read_prompts
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import save_png, sheet
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.drawing.sampling import VelocityNetwork
from ladd_dist.training.hooks import Hook, RunView

_PER_BUCKET = 8


class Preview(Hook):
    """Draws with the averaged weights; encodes its prompts once, so that no text encoder stays in memory.

    Raises:
        LaddError: if the prompts cannot be used, before a text encoder is loaded.
    """

    name = "preview"

    def __init__(self, config: Config, world: World) -> None:
        self.every = config.train.preview_every
        self._world, self._steps = world, config.sampling.steps
        self._folder = Path(config.run_dir) / "previews"
        entries = read_prompts(config.evaluation.prompts, config.synthesis.buckets)
        self._pipeline = Pipeline(config, world.device)
        groups = first_of_each_bucket(entries, _PER_BUCKET)
        self._encoded = [self._pipeline.encode_entries(group, "preview") for group in groups]
        self._pipeline.release_text()

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        """Write ``run_dir/previews/ITERATION.png``."""
        with run.student.averaged():
            path = self.draw(run.student, run.iteration)
        run.tracker.picture(run.iteration, path)

    def draw(self, student: VelocityNetwork, iteration: int) -> Path:
        """Draw the sheet on every rank (a sharded student needs all of them) and write it on rank 0."""
        latents = [self._pipeline.student(student, encoded, self._steps) for encoded in self._encoded]
        path = self._folder / f"{iteration:08d}.png"
        if self._world.is_main:
            save_png(sheet([list(self._pipeline.decode(x)) for x in latents]), path)
        return path
