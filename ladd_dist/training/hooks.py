"""Hooks: code that the training loop calls at fixed places, with the live networks at hand, such as the previews.

To add one, subclass `Hook`, override the methods of the places that it needs, and append it to `Trainer.hooks` on
every rank. Its exceptions end the run: nothing catches them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine, Shard, StateKind
from ladd_dist.engines.ema import Ema
from ladd_dist.errors import LaddError
from ladd_dist.training.tracking import Row, Tracker


class LockstepStudent:
    """The live student as a hook runs it: a forward pass begins only where every rank begins one.

    A sharded student gathers its weights from all ranks, and one that ran alone would wait for the others for ever.
    """

    def __init__(self, engine: Engine, ema: Ema, hook: str, world: World) -> None:
        self._engine, self._ema, self._hook, self._world = engine, ema, hook, world
        self._passes = 0

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass, with the network's own arguments and result.

        Raises:
            LaddError: on every rank, if another one has left the hook instead.
        """
        self._passes += 1
        self._meet("begins pass")
        return self._engine(*inputs)

    def along(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """Another network that may be sharded, such as the teacher, under the same rule."""

        def run(*inputs: Any, **options: Any) -> Any:
            self._passes += 1
            self._meet("begins pass")
            return network(*inputs, **options)

        return run

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Run the student with the moving average of its weights inside the block.

        Raises:
            LaddError: on every rank, if another one does something else instead.
        """
        self._meet("takes the average after pass")
        with self._ema.applied():
            yield
            self._meet("puts the average back after pass")

    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        """This rank's part of the weights or of AdamW's moments, see `Engine.shards`."""
        return self._engine.shards(kind)

    def leave(self) -> None:
        """Say that the hook has returned, and wait for the other ranks.

        Raises:
            LaddError: on every rank, if another one begins one more forward pass.
        """
        self._meet("ends after pass")

    def _meet(self, does: str) -> None:
        everyone = self._world.gather((does, self._passes))
        if len({what for what, _ in everyone}) > 1:
            ranks = ", ".join(f"rank {rank} {what} {count}" for rank, (what, count) in enumerate(everyone))
            raise LaddError(
                f"hook {self._hook} does not run the student as often on every rank ({ranks}): let no forward pass "
                "depend on the rank"
            )


class GoBack(Exception):
    """Raised in `Hook.after_row` or `Hook.after_step` on every rank: the run goes on from an earlier checkpoint, as
    another attempt.

    Args:
        iteration: the checkpoint's.
        reason: why, in words.
    """

    def __init__(self, iteration: int, reason: str) -> None:
        super().__init__(reason)
        self.iteration = iteration


@dataclass(frozen=True)
class RunView:
    """What a hook is given of the run; ``iteration`` counts finished iterations."""

    config: Config
    world: World
    iteration: int
    student: LockstepStudent
    tracker: Tracker
    teacher: Callable[..., Any] | None = None
    """The method's, see `Method.teacher_features`, in lockstep like the student."""


class Hook:
    """Base of all hooks: every place does nothing unless overridden.

    Lockstep: every rank runs the same number of the student's forward passes in a call, or the run ends with a
    `LaddError` that names the hook. Ranks wait for one another around each pass and at the end of each call, so an
    overridden `after_step` should not have a small ``every``.
    """

    name: str
    """Phase of the clock, and what errors call it."""
    every: int = 1
    """Iterations between two calls of `after_step`; the same on all ranks."""

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        """An iteration is done: called every ``every`` iterations and at the last, after `after_row` where both are.

        Args:
            metrics: the iteration's `methods.base.Metrics`, on the device and of this rank alone.

        Raises:
            GoBack: to go back to an earlier checkpoint.
        """

    def after_row(self, run: RunView, row: Row) -> None:
        """Rank 0 has recorded a row of ``metrics.jsonl``, averaged over ranks and iterations since the last one.

        Raises:
            GoBack: to go back to an earlier checkpoint.
        """

    def after_going_back(self, run: RunView) -> None:
        """The run has gone back to the checkpoint of ``run.iteration``: rows and checkpoints after it are gone."""

    def before_checkpoint(self, run: RunView) -> None:
        """A checkpoint is about to be copied from the networks."""

    def after_checkpoint(self, run: RunView, folder: Path) -> None:
        """A checkpoint is copied, and being written to ``folder`` by a thread; it can be pinned already."""

    def at_end(self, run: RunView) -> None:
        """The last iteration is done and its checkpoint on disk; not called where the run stops to go on later."""


class Hooks:
    """Calls hooks in their order, each at the places that it overrides.

    Raises:
        LaddError: if ranks have different hooks.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        config: Config,
        world: World,
        student: Engine,
        ema: Ema,
        tracker: Tracker,
        clock: Clock,
        teacher: Callable[..., Any] | None = None,
    ) -> None:
        self._teacher = teacher
        self._hooks, self._config, self._world, self._clock = hooks, config, world, clock
        self._student, self._ema, self._tracker = student, ema, tracker
        declared = world.gather([(hook.name, hook.every) for hook in hooks])
        if any(others != declared[0] for others in declared):
            raise LaddError(f"ranks have different hooks (name, every): {declared}: register the same ones on each")
        self._meeting = world.aside() if hooks else world

    def after_step(self, iteration: int, metrics: Mapping[str, Tensor], last: bool) -> None:
        """See `Hook.after_step`."""
        due = [hook for hook in self._hooks if last or iteration % hook.every == 0]
        self._visit("after_step", due, iteration, lambda hook, run: hook.after_step(run, metrics))

    def after_row(self, iteration: int, row: Row) -> None:
        """See `Hook.after_row`."""
        self._visit("after_row", self._hooks, iteration, lambda hook, run: hook.after_row(run, row))

    def after_going_back(self, iteration: int) -> None:
        """See `Hook.after_going_back`."""
        self._visit("after_going_back", self._hooks, iteration, lambda hook, run: hook.after_going_back(run))

    def before_checkpoint(self, iteration: int) -> None:
        """See `Hook.before_checkpoint`."""
        self._visit("before_checkpoint", self._hooks, iteration, lambda hook, run: hook.before_checkpoint(run))

    def after_checkpoint(self, iteration: int, folder: Path) -> None:
        """See `Hook.after_checkpoint`."""
        self._visit("after_checkpoint", self._hooks, iteration, lambda hook, run: hook.after_checkpoint(run, folder))

    def at_end(self, iteration: int) -> None:
        """See `Hook.at_end`."""
        self._visit("at_end", self._hooks, iteration, lambda hook, run: hook.at_end(run))

    def _visit(self, place: str, hooks: Iterable[Hook], iteration: int, act: Callable[[Hook, RunView], None]) -> None:
        for hook in hooks:
            if getattr(type(hook), place) is getattr(Hook, place):
                continue
            self._clock.mark(hook.name)
            student = LockstepStudent(self._student, self._ema, hook.name, self._meeting)
            teacher = student.along(self._teacher) if self._teacher else None
            act(hook, RunView(self._config, self._world, iteration, student, self._tracker, teacher))
            student.leave()
