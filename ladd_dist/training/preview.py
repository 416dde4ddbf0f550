"""Picture strips of the student while it trains: the same held-out prompts and noise every time."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry, first_of_each_bucket, read_prompts
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import save_png, sheet
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.drawing.sampling import VelocityNetwork
from ladd_dist.training.hooks import Hook, RunView

PREVIEWS, PROMPTS = "previews", "prompts"
"""The folder in the run's, and the text chunk of a picture with its prompts as JSON."""
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
        self._folder = Path(config.run_dir) / PREVIEWS
        groups = _of_every_bucket(config)
        self._pipeline = Pipeline(config, world.device)
        self._encoded = [(group, self._pipeline.encode_entries(group, "preview")) for group in groups]
        self._pipeline.release_text()

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        """Write ``run_dir/previews/ITERATION/BUCKET.png``."""
        with run.student.averaged():
            paths = self.draw(run.student, run.iteration)
        run.tracker.pictures(run.iteration, {f"preview/{path.stem}": path for path in paths})

    def draw(self, student: VelocityNetwork, iteration: int) -> list[Path]:
        """Draw a strip per bucket on every rank (a sharded student needs all of them) and write them on rank 0."""
        folder, paths = self._folder / f"{iteration:08d}", []
        for entries, encoded in self._encoded:
            latents = self._pipeline.student(student, encoded, self._steps)
            paths.append(folder / f"{entries[0].bucket.name}.png")
            if self._world.is_main:
                strip = sheet([list(self._pipeline.decode(latents))])
                prompts = json.dumps([entry.prompt for entry in entries])
                # Renamed into its place: the page takes what it finds there.
                save_png(strip, folder / f".{paths[-1].name}", {PROMPTS: prompts}).replace(paths[-1])
        return paths


def _of_every_bucket(config: Config) -> list[list[PromptEntry]]:
    """The first held-out prompts of every bucket; where none is meant for a bucket, the first of all."""
    buckets = config.synthesis.buckets
    entries = read_prompts(config.evaluation.prompts, buckets)
    groups = first_of_each_bucket(entries, _PER_BUCKET)
    bare = [Bucket.parse(name) for name in buckets if name not in {group[0].bucket.name for group in groups}]
    return groups + [[PromptEntry(e.id, e.prompt, bucket) for e in entries[:_PER_BUCKET]] for bucket in bare]
