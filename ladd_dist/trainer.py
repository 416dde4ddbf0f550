"""The loop: batch, step, average, log, save, preview. The same for a laptop and for 512 GPUs."""

from collections.abc import Iterator

import torch

from ladd_dist import checkpoint
from ladd_dist.batch import Batch
from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.reader import LatentReader, check_dataset
from ladd_dist.distributed import World
from ladd_dist.ema import Ema
from ladd_dist.engines.base import Shard
from ladd_dist.engines.build import build_engine, check_launch, compute_dtype, place_frozen
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError
from ladd_dist.ladd import Ladd, Sample, draw_sample
from ladd_dist.log import log, progress
from ladd_dist.models.discriminator import DiscriminatorHeads
from ladd_dist.models.transformer import Backbone, fingerprint, load_config, load_transformer
from ladd_dist.preview import Preview
from ladd_dist.tracking import Tracker
from ladd_dist.window import Window


class Trainer:
    """Builds the run from its configuration, resuming from its newest checkpoint if there is one.

    Everything that can be wrong with the input is checked first, before a network is loaded.

    Raises:
        LaddError: for input that cannot be trained on.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        check_launch(config, world)
        config.accumulation(world.size)
        self.space = LatentSpace.of(config.teacher.path)
        check_student(config)
        self.teacher_id = fingerprint(config.teacher.path)
        manifest = check_dataset(config, self.space, self.teacher_id)

        torch.manual_seed(config.seed)  # the heads' initial weights
        self.ladd = build_networks(config, world)
        self.ema = Ema(self.ladd.student, config.train.ema_decay)
        self.reader = LatentReader(config, manifest, world)
        self.done = self._resume()
        self.preview = Preview(config, world) if config.train.preview_every else None

    def run(self) -> None:
        """Train to ``train.iterations``."""
        train = self.config.train
        tracker = Tracker(self.config, self.world, self.done)
        bar = progress("train", train.iterations, unit="it", world=self.world, done=self.done)
        window, batches = Window(self.config, self.world, self.done), self._batches()
        while self.done < train.iterations:
            metrics = self.ladd.iteration(self.done, next(batches))
            self.ema.update(self.done)
            self.done += 1
            window.add(metrics)
            bar.update()
            if self.done % train.log_every == 0 or self.done == train.iterations:
                tracker.write(window.close(self.done))
            if self.preview and (self.done % train.preview_every == 0 or self.done == train.iterations):
                with self.ema.applied():
                    path = self.preview.draw(self.ladd.student, self.done)
                tracker.picture(self.done, path)
            if self.done % train.checkpoint_every == 0 or self.done == train.iterations:
                self._save()
        bar.close()
        tracker.close()

    def _batches(self) -> Iterator[list[Sample]]:
        device = self.world.device
        for micro_batches in self.reader:
            yield [self._sample(batch.to(device)) for batch in micro_batches]

    def _sample(self, batch: Batch) -> Sample:
        grid = self.space.grid(*batch.latents.shape[-2:])
        return draw_sample(self.config, self.done, batch, grid, self.world.device)

    def _sharded(self) -> dict[str, Shard]:
        ema = {f"ema/param/{name}": shard for name, shard in self.ema.shards().items()}
        return checkpoint.network_shards("student", self.ladd.student) | ema

    def _save(self) -> None:
        student, heads = self._sharded(), checkpoint.network_shards("heads", self.ladd.heads)
        whole = self.ladd.student.replicated
        path = checkpoint.save(
            self.config,
            self.world,
            shards={} if whole else student,
            replicated=heads | student if whole else heads,
            iteration=self.done,
            data=self.reader.state_dict(),
            teacher=self.teacher_id,
        )
        log(f"saved {path}")

    def _resume(self) -> int:
        path = checkpoint.find(self.config.run_dir)
        if path is None:
            return 0
        saved = checkpoint.Checkpoint(path, self.world)
        if saved.state.teacher != self.teacher_id:
            raise LaddError(
                f"checkpoint {path} was trained with teacher {saved.state.teacher}, but teacher.path="
                f"{self.config.teacher.path} is {self.teacher_id}: restore that teacher, or set a new run_dir"
            )
        saved.load(self._sharded() | checkpoint.network_shards("heads", self.ladd.heads))
        for engine in (self.ladd.student, self.ladd.heads):
            engine.publish()
            engine.set_updates(saved.state.iteration)
        self.reader.load_state_dict(saved.state.data)
        log(f"resuming from {path} at iteration {saved.state.iteration}")
        return saved.state.iteration


def check_student(config: Config) -> None:
    """Hold a student of its own against the teacher.

    Raises:
        LaddError: naming the first shape in which their inputs or outputs differ.
    """
    if config.student.path is None:
        return
    student, teacher = load_config(config.student.path), load_config(config.teacher.path)
    for key in ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim"):
        if student[key] != teacher[key]:
            raise LaddError(
                f"student.path={config.student.path} has {key}={student[key]}, but the teacher has {teacher[key]}: "
                "choose a student that takes the teacher's latents and text, or null for a copy of the teacher"
            )


def build_networks(config: Config, world: World) -> Ladd:
    """Load teacher and student, make the heads, and put each where the configuration says."""
    dtype = compute_dtype(config)
    teacher = Backbone(load_transformer(config.teacher.path, dtype), dtype, config.teacher.activation_checkpointing)
    start = config.student.path or config.teacher.path
    student = Backbone(load_transformer(start, torch.float32), dtype, config.student.activation_checkpointing)
    pooled = teacher.net.config.pooled_projection_dim
    heads = DiscriminatorHeads(config.discriminator, teacher.depth, teacher.width, pooled)
    return Ladd(
        config,
        student=build_engine(config, student.train(), world),
        teacher=place_frozen(config, teacher, world),
        heads=ReplicatedEngine(heads, config.head_optimizer, dtype, world),
    )
