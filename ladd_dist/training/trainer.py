"""The loop: batch, step, average, log, hooks, save. The same for a laptop and for 512 GPUs."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from ladd_dist.checkpoints import reader as checkpoint
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.data.check import check_dataset
from ladd_dist.data.reader import LatentReader
from ladd_dist.diffusion.batch import Batch
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine, Shard
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.build import build_engine, check_launch, compute_dtype, place_frozen
from ladd_dist.engines.ema import Ema
from ladd_dist.engines.learning_rate import rate_changes
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import Requeue
from ladd_dist.files.run_lock import Lease
from ladd_dist.log import log, progress, warn
from ladd_dist.methods.ladd.heads import DiscriminatorHeads, choose_heads, tapped_blocks
from ladd_dist.methods.ladd.step import Ladd, Sample, draw_sample
from ladd_dist.models.configs import load_config
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.sd3.attention import Attention, Place, choose_attention, set_attention
from ladd_dist.models.sd3.transformer import Backbone, end_behind, make_transformer, meta_transformer
from ladd_dist.models.weights import FolderWeights
from ladd_dist.planning.memory import describe, expected_state
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.requests import Control
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.hooks import Hook, Hooks
from ladd_dist.training.preview import Preview
from ladd_dist.training.profiler import Profiler
from ladd_dist.training.tracking import Tracker
from ladd_dist.training.window import Window


class Trainer:
    """Builds the run from its configuration, resuming from its newest checkpoint if there is one.

    Everything that can be wrong with the input is checked first, before a network is loaded.

    Args:
        signals: the process's requests to stop or to profile; None listens to none.
        lease: what makes ``run_dir`` this job's own; None takes it for granted.

    Raises:
        LaddError: for input that cannot be trained on.
    """

    def __init__(
        self, config: Config, world: World, signals: Signals | None = None, lease: Lease | None = None
    ) -> None:
        self.config, self.world, self.clock = config, world, Clock(world)
        self.signals, self.lease = signals or Signals(), lease or Lease()
        world.position.enter(0, "start")
        check_launch(config, world)
        config.accumulation(world.size)
        self.space = check_networks(config)
        self.teacher_id = fingerprint(config.teacher.path)
        manifest = check_dataset(config, self.space, self.teacher_id, world)

        log(f"each rank will hold {describe(expected_state(config, world.size))}")
        self.ladd = build_networks(config, world, self.clock)
        self.ema = Ema(self.ladd.student, config.train.ema_decay, on_host=config.train.ema_device == "cpu")
        self.reader = LatentReader(config, manifest, world)
        self._micro_batches = iter(self.reader)
        self.done, self.attempt = 0, 0
        self._resume()
        self.writer = CheckpointWriter(config, world, self.lease)
        self.hooks: list[Hook] = [Preview(config, world)] if config.train.preview_every else []

    def run(self) -> None:
        """Train to ``train.iterations``; a run that is there already says so.

        Raises:
            Requeue: if a signal asked the run to stop; everything is saved.
            LaddError: if training diverged, a checkpoint could not be written, or another job has ``run_dir``.
        """
        train = self.config.train
        if self.done >= train.iterations:
            log(
                f"{self.config.run_dir} is finished: {self.done} iterations are done, train.iterations="
                f"{train.iterations}: raise it to go on"
            )
            return
        for _ in self.iterations():
            pass
        if self.done < train.iterations:
            raise Requeue(f"stopped at iteration {self.done} as asked: start the same command again to go on")

    def iterations(self) -> Iterator[int]:
        """`run`, giving way after every iteration; yields how many are done. Ends early if a signal asks for it."""
        train, control = self.config.train, Control(self.world, self.signals)
        self.lease.check()
        tracker = Tracker(self.config, self.world, self.done)
        window, profiler = Window(self.config, self.world, self.clock, self.done), Profiler(self.config, self.world)
        bar = progress("train", train.iterations, unit="it", world=self.world, done=self.done)
        request = control.begin()
        with closing(tracker), closing(profiler), closing(bar):
            hooks = Hooks(self.hooks, self.config, self.world, self.ladd.student, self.ema, tracker, self.clock)
            while self.done < train.iterations and not request.stop:
                profiler.step(self.done, request.profile)
                self.clock.iteration = self.done + 1
                self.clock.mark("data")
                metrics = self.ladd.iteration(self.done, self.samples(self.done))
                self.ema.update(self.done)
                self.done += 1
                self.clock.mark("other")
                window.add(metrics)
                bar.update()
                request = control.agree(self.writer.failed)
                self.lease.check()
                last = self.done == train.iterations
                leaving = last or request.stop
                if leaving or self.done % train.log_every == 0:
                    row = window.close(self.done)
                    tracker.write(row)
                    hooks.after_row(self.done, row)
                hooks.after_step(self.done, metrics, last)
                if leaving or self.done % train.checkpoint_every == 0:
                    hooks.before_checkpoint(self.done)
                    hooks.after_checkpoint(self.done, self._save())
                if leaving or request.failed:
                    self.writer.wait()
                if last:
                    hooks.at_end(self.done)
                yield self.done

    def samples(self, iteration: int) -> list[Sample]:
        """This rank's micro-batches of the reader's next global batch, with an iteration's noise (counted from 0)."""
        device = self.world.device
        return [self._sample(batch.to(device), iteration) for batch in next(self._micro_batches)]

    def _sample(self, batch: Batch, iteration: int) -> Sample:
        grid = self.space.grid(*batch.latents.shape[-2:])
        return draw_sample(self.config, iteration, batch, grid, self.world.device, self.attempt)

    def _shards(self) -> dict[str, Shard]:
        ema = {f"ema/param/{name}": shard for name, shard in self.ema.shards().items()}
        return checkpoint.network_shards("student", self.ladd.student) | ema

    def _save(self) -> Path:
        self.clock.mark("checkpoint")
        student = self._shards() if self.ladd.student.owner else {}
        heads = checkpoint.network_shards("heads", self.ladd.heads) if self.ladd.heads.owner else {}
        state = checkpoint.RunState(
            iteration=self.done,
            updates={name: engine.updates for name, engine in self._engines().items()},
            data=self.reader.state_dict(),
            teacher=self.teacher_id,
            engine=self.config.engine,
            world_size=self.world.size,
            attempt=self.attempt,
        )
        return self.writer.save(student | heads, state)

    def _engines(self) -> dict[str, Engine]:
        return {"student": self.ladd.student, "heads": self.ladd.heads}

    def _resume(self) -> None:
        saved = checkpoint.open_newest(self.config.run_dir, self.world)
        if saved is None:
            return
        self.restore(saved, saved.state.attempt)
        log(f"resuming from {saved.path} at iteration {saved.state.iteration}")
        self._tell_rate_changes(saved)

    def restore(self, saved: checkpoint.Checkpoint, attempt: int) -> None:
        """Put the live run where a checkpoint is, before or between iterations, on every rank alike.

        Args:
            attempt: the checkpoint's own replays its path; one more has other noise and another order from here on.

        Raises:
            LaddError: if the checkpoint is of another run or of other networks.
        """
        saved.check(self.config, self.teacher_id)
        saved.load(self._shards() | checkpoint.network_shards("heads", self.ladd.heads))
        for name, engine in self._engines().items():
            engine.publish()
            engine.updates = saved.state.updates[name]
        self.reader.load_state_dict(saved.state.data, attempt)
        self.done, self.attempt = saved.state.iteration, attempt
        self.world.position.saved = str(saved.path)

    def _tell_rate_changes(self, saved: checkpoint.Checkpoint) -> None:
        iteration = saved.state.iteration
        changes = rate_changes(saved.config, self.config, iteration)
        if changes and iteration < self.config.train.iterations and self.world.is_main:
            warn(changes)


def build_networks(config: Config, world: World, clock: Clock) -> Ladd:
    """Build teacher, student and heads where the configuration puts them.

    Raises:
        LaddError: if weights are missing or do not fit their configuration.
    """
    dtype, start = compute_dtype(config), config.student.path or config.teacher.path

    teacher_attention = pick_attention(config, "teacher", config.teacher.path, config.teacher.compile, world)
    student_attention = pick_attention(config, "student", start, config.student.compile, world)
    heads = make_heads(config, world.device).to(world.device)

    def make_teacher() -> Backbone:
        net = end_behind(make_transformer(config.teacher.path), heads.taps[-1])
        set_attention(net, teacher_attention)
        return Backbone(net, dtype, config.teacher.activation_checkpointing).requires_grad_(False).eval()

    def make_student() -> Backbone:
        net = make_transformer(start)
        set_attention(net, student_attention)
        return Backbone(net, dtype, config.student.activation_checkpointing).train()

    teacher = Blueprint(make_teacher, FolderWeights(config.teacher.path), dtype, config.teacher.compile)
    student = Blueprint(make_student, FolderWeights(start), torch.float32, config.student.compile)
    return Ladd(
        config,
        student=build_engine(config, student, world),
        teacher=place_frozen(config, teacher, world),
        heads=ReplicatedEngine(heads, config.head_optimizer, dtype, world),
        clock=clock,
    )


def pick_attention(config: Config, network: str, folder: str, compiled: bool, world: World) -> Attention:
    """Choose a network's attention by device, shape and measurements, and log one line that says why.

    Raises:
        LaddError: if ``kernels.attention`` names one that cannot run.
    """
    place = Place(world.device, compute_dtype(config), compiled)
    attention = choose_attention(config.kernels.attention, load_config(folder), place)
    log(f"attention of the {network}: {attention}")
    return attention


def make_heads(config: Config, device: torch.device) -> DiscriminatorHeads:
    """The discriminator's heads for ``device``, with their initial weights on the CPU, a function of the seed.

    Raises:
        LaddError: if the kernels that the configuration asks for cannot run there.
    """
    net, discriminator = meta_transformer(config.teacher.path), config.discriminator
    teacher = Backbone(net)
    heads = len(tapped_blocks(discriminator, teacher.depth))
    choice = choose_heads(config.kernels.heads, discriminator, heads, device, compute_dtype(config))
    log(f"discriminator heads: {choice}")
    torch.manual_seed(config.seed)
    return DiscriminatorHeads(
        discriminator, teacher.depth, teacher.width, net.config.pooled_projection_dim, choice.implementation
    )
