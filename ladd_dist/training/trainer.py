"""The loop: batch, step, average, log, hooks, save. The same for a laptop and for 512 GPUs."""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from ladd_dist.checkpoints import reader as checkpoint
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.data.check import check_dataset
from ladd_dist.data.reader import LatentReader
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.noise import attempt_seed
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Shard
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.ema import Ema
from ladd_dist.engines.learning_rate import rate_changes
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress, warn
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.registry import build_method
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.start import Start
from ladd_dist.planning.memory import describe
from ladd_dist.planning.networks import check_networks
from ladd_dist.planning.onlookers import resident
from ladd_dist.supervision.requests import RequestExchange
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.averages import MetricAverages
from ladd_dist.training.evaluation import Evaluation
from ladd_dist.training.guard import Guard
from ladd_dist.training.hooks import GoBack, Hook, Hooks
from ladd_dist.training.preview import Preview
from ladd_dist.training.profiler import Profiler
from ladd_dist.training.redraw import Redraw
from ladd_dist.training.rules import check_guard
from ladd_dist.training.tracking import Row, Tracker
from ladd_dist.training.weights import WeightChanges


class Trainer:
    """Builds the run from its configuration, resuming from its newest checkpoint if there is one.

    Everything that can be wrong with the input is checked first, before a network is loaded.

    Args:
        signals: the process's requests to stop or to profile; None listens to none.
        lock: the caller's on ``run_dir``, checked before anything is written there; None checks nothing.

    Raises:
        LaddError: for input that cannot be trained on.
        Requeue: if a signal asked the run to stop before it began.
    """

    def __init__(
        self, config: Config, world: World, signals: Signals | None = None, lock: RunLock | None = None
    ) -> None:
        self.config, self.world, self.clock = config, world, Clock(world)
        self.signals, self.lock = signals or Signals(), lock or RunLock()
        world.position.enter(0, "start")
        check_launch(config, world)
        config.accumulation(world.size)
        check_guard(config)
        self.space = check_networks(config)
        self.teacher_id, self.start_id = fingerprint(config.teacher.path), Start.fingerprint(config)
        self.dataset = check_dataset(config, self.space, self.teacher_id, world)
        self.reader = LatentReader(config, self.dataset, world)
        self.redraw = Redraw.of(config, self.dataset)

        # Before the networks: its prompts may be unusable, and its text encoders are gone when those are loaded.
        self.hooks: list[Hook] = [Preview(config, world)] if config.train.preview_every else []
        self.hooks += [Evaluation(config, world, self.signals)] if config.train.evaluate_every else []
        log(f"each rank will hold {describe(resident(config, world.size))}")
        self.method = build_method(config, world, self.clock)
        self.ema = Ema.of(self.method.student, config)
        self._micro_batches: Iterator[list[Batch]] = iter(self.reader)
        self.done, self.attempt = 0, 0
        self.writer = CheckpointWriter(config, world, self.lock)
        self._resume()
        self.hooks.append(Guard(config, world, self.method.trained, self.done))

    def run(self) -> None:
        """Train to ``train.iterations``; log that a run is finished if it is there already.

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
        """As `run`, one iteration at a time: yields how many are finished; ends early if a signal asked to stop.

        Raises:
            LaddError: as `run`.
        """
        train, exchange = self.config.train, RequestExchange(self.world, self.signals)
        self.lock.check()
        tracker = Tracker(self.config, self.world, self.done)
        averages = MetricAverages(self.config, self.world, self.clock, self.done)
        weights = WeightChanges(self.method.student, self.ema, self.world)
        profiler = Profiler(self.config, self.world)
        bar = progress("train", train.iterations, unit="it", world=self.world, done=self.done)
        asked = exchange.begin()
        told = self._redrawn()
        with closing(tracker), closing(profiler), closing(bar):
            student, teacher = self.method.student, self.method.teacher_features
            hooks = Hooks(self.hooks, self.config, self.world, student, self.ema, tracker, self.clock, teacher)
            while self.done < train.iterations and not asked.stop:
                profiler.step(self.done, asked.profile)
                self.clock.iteration = self.done + 1
                self.clock.mark("data")
                metrics = self.method.iteration(self.done, self.samples(self.done))
                self.ema.update(self.done)
                self.done += 1
                self.clock.mark("other")
                averages.add(metrics)
                bar.update()
                asked = exchange.agree(self.writer.failed)
                self.lock.check()
                last = self.done == train.iterations
                leaving = last or asked.stop
                try:
                    if leaving or self.done % train.log_every == 0:
                        row = averages.row(self.done, self._rate_factors()) | weights.row() | told
                        told = {}
                        tracker.write(row)
                        hooks.after_row(self.done, row)
                        averages.check(self.done)
                    hooks.after_step(self.done, metrics, last)
                except GoBack as asked_back:
                    self._go_back(asked_back)
                    bar.n = self.done
                    tracker.rewind(self.done, f"metrics-attempt-{self.attempt - 1}.jsonl")
                    averages = MetricAverages(self.config, self.world, self.clock, self.done)
                    weights.restart()
                    hooks.after_going_back(self.done)
                    continue
                if leaving or self.done % train.checkpoint_every == 0:
                    hooks.before_checkpoint(self.done)
                    hooks.after_checkpoint(self.done, self._save())
                if leaving or asked.failed:
                    self.writer.wait()
                if last:
                    hooks.at_end(self.done)
                yield self.done

    def _redrawn(self) -> Row:
        """What an untrained student makes of the first batch, which is then trained on."""
        if self.redraw is None or self.done:
            return {}
        self.world.position.enter(0, "redraw")
        share = next(self._micro_batches)
        self._micro_batches = chain([share], self._micro_batches)
        return self.redraw(self.method.student, share, self.world)

    def samples(self, iteration: int) -> list[Any]:
        """This rank's micro-batches of the reader's next global batch, with an iteration's noise (counted from 0)."""
        device = self.world.device
        return [self._sample(batch.to(device), iteration) for batch in next(self._micro_batches)]

    def _sample(self, batch: Batch, iteration: int) -> Any:
        grid = self.space.grid(*batch.latents.shape[-2:])
        return self.method.sample(attempt_seed(self.config.seed, self.attempt), iteration, batch, grid)

    def _rate_factors(self) -> dict[str, float]:
        return {name: engine.rate_factor for name, engine in self.method.trained.items()}

    def _shards(self) -> dict[str, dict[str, Shard]]:
        """What a checkpoint holds of each network, the student's average with the student."""
        shards = {name: checkpoint.network_shards(name, engine) for name, engine in self.method.trained.items()}
        shards[STUDENT] |= {f"ema/param/{name}": shard for name, shard in self.ema.shards().items()}
        return shards

    def _save(self) -> Path:
        self.clock.mark("checkpoint")
        owned = [part for name, part in self._shards().items() if self.method.trained[name].owner]
        state = checkpoint.RunState(
            iteration=self.done,
            updates={name: engine.updates for name, engine in self.method.trained.items()},
            data=self.reader.state_dict(),
            teacher=self.teacher_id,
            start=self.start_id,
            engine=self.config.engine,
            world_size=self.world.size,
            attempt=self.attempt,
            rate_factors=self._rate_factors(),
            dataset=self.dataset,
        )
        return self.writer.save({key: shard for part in owned for key, shard in part.items()}, state)

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
        saved.load({key: shard for part in self._shards().values() for key, shard in part.items()})
        for name, engine in self.method.trained.items():
            engine.publish()
            engine.updates = saved.state.updates[name]
            engine.rate_factor = saved.state.rate_factors.get(name, 1.0)
        self.reader.load_state_dict(saved.state.data, attempt)
        self.done, self.attempt = saved.state.iteration, attempt
        self.world.position.saved = str(saved.path)

    def _go_back(self, asked: GoBack) -> None:
        """Restore an earlier checkpoint, and make it the newest, of another attempt: what came later is dropped.

        Raises:
            LaddError: if the run has gone back too often.
        """
        limit = self.config.guard.max_go_backs
        if self.attempt >= limit:
            raise LaddError(f"{asked}: stopped, for the run has gone back guard.max_go_backs={limit} times already")
        self.writer.wait()
        self.restore(checkpoint.open_iteration(self.config.run_dir, asked.iteration, self.world), self.attempt + 1)
        self._save()
        self.writer.wait()
        if self.world.is_main:
            warn(f"{asked}: gone back to iteration {self.done}, as attempt {self.attempt}")

    def _tell_rate_changes(self, saved: checkpoint.Checkpoint) -> None:
        iteration = saved.state.iteration
        changes = rate_changes(saved.config, self.config, iteration, self.method.OPTIMIZERS.values())
        if changes and iteration < self.config.train.iterations and self.world.is_main:
            warn(changes)
