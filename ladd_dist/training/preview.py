"""Picture sheets of the student while it trains: the same held-out prompts and noise every time."""

from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.prompts import first_of_each_bucket, read_requests
from ladd_dist.diffusion.noise import image_noise, image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import save_png, sheet
from ladd_dist.drawing.sampling import VelocityNetwork, sample_student
from ladd_dist.engines.build import compute_dtype
from ladd_dist.models.sd3.text import TextEncoders
from ladd_dist.models.sd3.vae import Vae

_PER_BUCKET = 8


class Preview:
    """Encodes its prompts once, so that no text encoder stays in memory."""

    def __init__(self, config: Config, world: World) -> None:
        self._world, self._times = world, config.method.times(config.sampling.steps)
        self._folder = Path(config.run_dir) / "previews"
        space = LatentSpace.of(config.teacher.path)
        requests = read_requests(config.evaluation.prompts, config.synthesis.buckets)
        device = world.device
        text = TextEncoders(config.teacher.path, compute_dtype(config), device, config.teacher.max_t5_tokens)
        self._rows = []
        for rows in first_of_each_bucket(requests, _PER_BUCKET):
            seeds = [image_seed(config.seed, "preview", row.id) for row in rows]
            noises = image_noise(seeds, space.shape(rows[0].bucket), len(self._times), device)
            self._rows.append((noises, text.encode([row.prompt for row in rows])))
        self._vae = Vae(config.teacher.path, device) if world.is_main else None

    def draw(self, student: VelocityNetwork, iteration: int) -> Path:
        """Draw the sheet on every rank (a sharded student needs all of them) and write it on rank 0."""
        latents = [sample_student(student, noises, self._times, cond) for noises, cond in self._rows]
        path = self._folder / f"{iteration:08d}.png"
        if self._vae is not None:
            save_png(sheet([list(self._vae.decode(x)) for x in latents]), path)
        return path
