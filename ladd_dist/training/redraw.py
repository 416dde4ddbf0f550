"""Whether the data are what the teacher draws: an untrained student is the teacher, and can draw them again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.mds import Manifest, Provenance, read_empty
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.noise import IMAGE_DEVICE, image_noise, image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing.sampling import VelocityNetwork, sample_ode
from ladd_dist.drawing.synthesis import PURPOSE
from ladd_dist.errors import LaddError
from ladd_dist.log import log
from ladd_dist.models.registry import family_of
from ladd_dist.training.tracking import Row

REDRAWN = "redrawn"
"""The metric, in a run's first row alone."""


@dataclass(frozen=True)
class Redraw:
    """Draws a sample of each rank again, by what the dataset says of it."""

    _teacher: str
    _data: str
    _made: Provenance
    _empty: Conditioning | None

    @staticmethod
    def of(config: Config, dataset: Manifest) -> "Redraw | None":
        """None, with a line in the log that says why, where the student could not draw what is stored."""
        if not config.guard.redraw:
            return None
        made, empty = dataset.provenance, read_empty(config.data.path)
        obstacles = {
            "its pictures were given": not made.steps,
            "its pictures were chosen among others": made.pairs is not None,
            "the student starts from something else than its teacher": not config.student.starts_as_teacher,
            "it was drawn from a GPU's noise, by an older version, or does not say from which": (
                dataset.device != IMAGE_DEVICE.type
            ),
            "it lacks the empty prompt's conditioning": made.guidance > 1 and empty is None,
        }
        if why := next((why for why, holds in obstacles.items() if holds), None):
            log(f"nothing of the dataset is drawn again to see whether it is the teacher's: {why}")
            return None
        return Redraw(config.teacher.path, config.data.path, made, empty)

    def __call__(self, student: VelocityNetwork, share: Sequence[Batch], world: World) -> Row:
        """Draw the first sample of this rank's share of a global batch; all ranks at once.

        Returns:
            Under `REDRAWN` the norm of the difference of its latent and the stored one, over that of the stored one:
            near 0 if it is the teacher's, near 1.4 if they have nothing in common. Mean over ranks.

        Raises:
            LaddError: on every rank, if that is no number on any.
        """
        batch, made = share[0].to(world.device), self._made
        stored, cond = batch.latents[:1], Conditioning(*(tensor[:1] for tensor in batch.cond))
        channels, height, width = stored.shape[1:]
        seed = image_seed(made.seed, PURPOSE, batch.ids[0])
        noise = image_noise([seed], (channels, height, width), 1, world.device)[0]
        tokens = math.prod(LatentSpace.of(self._teacher).grid(height, width))
        times = family_of(self._teacher).schedule(self._teacher).times(made.steps, tokens)
        empty = None if self._empty is None else self._empty.to(world.device)
        drawn = sample_ode(student, noise, times, cond, empty, made.guidance)
        distance = (drawn - stored).norm() / stored.norm()
        world.mean_([distance])
        if not distance.isfinite():
            raise LaddError(
                f"the untrained student drew non-finite latents, or those of data.path={self._data} are zeros: try "
                "train.precision=fp32, or synthesize again"
            )
        log(f"drew {world.size} of the data again: {float(distance):.3f} from what is stored, relative")
        return {REDRAWN: float(distance)}
