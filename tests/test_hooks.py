"""Hooks: where the loop calls them, what they see, and that all ranks run the student in lockstep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from checkpoints import in_threads
from conftest import ALONE, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import run_ranks
from torch import Tensor

from ladd_dist.checkpoints.folders import pin
from ladd_dist.checkpoints.reader import open_iteration
from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.training.hooks import Hook, Hooks, RunView
from ladd_dist.training.tracking import Row
from ladd_dist.training.trainer import Trainer

# Places


class Recorder(Hook):
    """Notes every call, and pins the checkpoint of iteration 2."""

    name, every = "recorder", 3

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        assert metrics["d_loss"].isfinite()
        self.calls.append(("step", run.iteration))

    def after_row(self, run: RunView, row: Row) -> None:
        assert row["iteration"] == run.iteration
        self.calls.append(("row", run.iteration))

    def before_checkpoint(self, run: RunView) -> None:
        self.calls.append(("before", run.iteration))

    def after_checkpoint(self, run: RunView, folder: Path) -> None:
        if run.iteration == 2:
            pin(folder)
        self.calls.append(("after", run.iteration))

    def at_end(self, run: RunView) -> None:
        open_iteration(run.config.run_dir, run.iteration, run.world)
        self.calls.append(("end", run.iteration))


def test_hooks_are_called_at_the_declared_places(tmp_path: Path, dataset: Path) -> None:
    counts = ["train.iterations=7", "train.log_every=2", "train.checkpoint_every=2", "train.keep_checkpoints=1"]
    trainer, hook = Trainer(tiny_config(tmp_path, dataset, *counts), ALONE), Recorder()
    trainer.hooks.append(hook)
    trainer.run()
    assert hook.calls == [
        ("row", 2), ("before", 2), ("after", 2),
        ("step", 3),
        ("row", 4), ("before", 4), ("after", 4),
        ("row", 6), ("step", 6), ("before", 6), ("after", 6),
        ("row", 7), ("step", 7), ("before", 7), ("after", 7), ("end", 7),
    ]  # fmt: skip
    left = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert left == ["step-00000002", "step-00000002.pinned", "step-00000007"]


class Failing(Hook):
    name = "failing"

    def after_row(self, run: RunView, row: Row) -> None:
        raise ZeroDivisionError


def test_a_hooks_exception_ends_the_run(tmp_path: Path, dataset: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, dataset), ALONE)
    trainer.hooks.append(Failing())
    with pytest.raises(ZeroDivisionError):
        trainer.run()


# Lockstep


class Uneven(Hook):
    """Runs the student as often as its rank's entry says."""

    name = "uneven"

    def __init__(self, passes: list[int]) -> None:
        self._passes = passes

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        for _ in range(self._passes[run.world.rank]):
            run.student(*metrics.values())


def outcome(world: World, hook: Hook) -> str:
    """What a hook's call after an iteration leads to, with a student that does nothing."""
    nothing: Any = lambda *_: None  # noqa: E731
    try:
        hooks = Hooks([hook], cast(Config, None), world, nothing, nothing, nothing, Clock(world))
        hooks.after_step(1, {}, last=False)
    except LaddError as error:
        return str(error)
    return ""


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_every_rank_runs_the_student_equally_often_or_all_are_told(passes: list[int]) -> None:
    told = in_threads(len(passes), lambda world: outcome(world, Uneven(passes)))
    assert len(set(told)) == 1
    assert ("hook uneven does not run the student as often on every rank (rank 0" in told[0]) == (
        len(set(passes)) > 1
    )


def test_hooks_that_differ_between_ranks_are_refused() -> None:
    def differing(world: World) -> str:
        hook = Uneven([0, 0])
        hook.every = 1 + world.rank
        return outcome(world, hook)

    first, second = in_threads(2, differing)
    assert first == second and "ranks have different hooks" in first


class OneMoreOnRankOne(Hook):
    """A pass of a sharded student that rank 0 does not take part in."""

    name = "one more"

    def after_step(self, run: RunView, metrics: Mapping[str, Tensor]) -> None:
        cond = self.sample.batch.cond
        with run.student.averaged(), torch.no_grad():
            for _ in range(1 + run.world.rank):
                run.student(self.sample.batch.latents, self.sample.t, cond)


def _train_out_of_step(world: World, config: Config) -> str:
    trainer, hook = Trainer(config, world), OneMoreOnRankOne()
    (hook.sample,) = trainer.samples(0)
    trainer.hooks.append(hook)
    with pytest.raises(LaddError) as told:
        trainer.run()
    return str(told.value)


def test_a_sharded_student_does_not_hang_where_one_rank_runs_it_once_more(tmp_path: Path, dataset: Path) -> None:
    config = tiny_config(tmp_path, dataset, "engine=zero3", "train.micro_batch=null")
    first, second = run_ranks(_train_out_of_step, config, size=2)
    assert first == second and "hook one more does not" in first
    assert "(rank 0 puts the average back after pass 1, rank 1 begins pass 2)" in first
