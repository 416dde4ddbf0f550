"""The loop: batch, step, average, log, save, preview. The same for a laptop and for 512 GPUs."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

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
from ladd_dist.ladd import Ladd, Metrics, draw_sample
from ladd_dist.log import Eta, log, progress
from ladd_dist.models.discriminator import DiscriminatorHeads
from ladd_dist.models.transformer import Backbone, fingerprint, load_transformer
from ladd_dist.preview import Preview
from ladd_dist.schedule import learning_rate
from ladd_dist.tracking import Row, Tracker


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
        window, batches = _Window(self.config, self.world, self.done), self._batches()
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

    def _batches(self) -> Iterator[list]:
        device = self.world.device
        for micro_batches in self.reader:
            yield [self._sample(batch.to(device)) for batch in micro_batches]

    def _sample(self, batch: Batch) -> object:
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


class _Window:
    """Metrics between two logging steps, kept on the device: the loop never waits for them in between."""

    def __init__(self, config: Config, world: World, done: int) -> None:
        self._config, self._world = config, world
        self._rows: list[Metrics] = []
        self._start = time.monotonic()
        self._eta = Eta(config.train.iterations)
        self._eta.begin(done)

    def add(self, metrics: Metrics) -> None:
        self._rows.append(metrics)

    def close(self, done: int) -> Row:
        """Average over iterations and ranks, print a line, and start anew.

        Raises:
            LaddError: if training has diverged.
        """
        means: dict[str, Tensor] = {k: torch.stack([r[k] for r in self._rows]).mean(0) for k in self._rows[0]}
        self._world.mean_(list(means.values()))
        seconds = time.monotonic() - self._start
        train = self._config.train
        row: Row = {"iteration": done, **{key: value.tolist() for key, value in means.items()}}
        row["samples_per_second"] = len(self._rows) * train.global_batch / seconds
        row["student_lr"] = learning_rate(self._config.student_optimizer, done - 1, train.iterations)
        row["head_lr"] = learning_rate(self._config.head_optimizer, done - 1, train.iterations)
        if self._world.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not all(torch.isfinite(value).all() for value in means.values()):
            raise LaddError(
                f"training diverged near iteration {done} (non-finite values): lower student_optimizer.lr or "
                "head_optimizer.lr, or raise method.r1_weight; the last checkpoint is untouched"
            )
        gap = float(means["real_logit"].mean() - means["fake_logit"].mean())
        log(
            f"{done:>6}/{train.iterations}  d {row['d_loss']:.3f}  g {row['g_loss']:+.3f}  gap {gap:.3f}  "
            f"|g| {row['student_grad_norm']:.2e}  {row['samples_per_second']:.1f} img/s  eta {self._eta.left(done)}"
        )
        self._rows, self._start = [], time.monotonic()
        return row
