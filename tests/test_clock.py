"""Where an iteration's time goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ALONE, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.distributed import clock as clock_module
from ladd_dist.distributed.clock import Clock
from ladd_dist.training import averages
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

_COUNT, _BATCH = 3, 8
_PHASES = {"data", "student forward", "teacher forward", "head forward", "head backward", "teacher backward"}
_PHASES |= {"student backward", "optimizer", "other"}
_AFTER_A_ROW = {"guard", "checkpoint"}


class Hands:
    """The clock's own time, which stands still unless it is moved."""

    now = 0.0

    def perf_counter(self) -> float:
        return float(self.now)


class Ticking(Hands):
    """Moves on by one whenever a phase begins or is read."""

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    def monotonic(self) -> float:
        return self.now


@contextmanager
def stopped() -> Iterator[tuple[Clock, Hands]]:
    hands = Hands()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module, "time", hands)
        yield Clock(ALONE), hands


def test_time_goes_to_the_phase_that_was_marked_last() -> None:
    with stopped() as (clock, hands):
        for hands.now, phase in [(1, "a"), (2, "b"), (4, "a")]:
            clock.mark(phase)
        hands.now = 7
        assert clock.seconds() == {"a": 4, "b": 2}
        hands.now = 8
        assert clock.seconds() == {"a": 1}, "the phase goes on after it was read"


def test_before_the_first_mark_there_is_nothing_to_tell() -> None:
    assert Clock(ALONE).seconds() == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.booleans()), min_size=1))
def test_phases_add_up_whenever_they_are_read(steps: list[tuple[str, int, bool]]) -> None:
    total = 0.0
    with stopped() as (clock, hands):
        for phase, length, read in steps:
            clock.mark(phase)
            hands.now += length
            total += sum(clock.seconds().values()) if read else 0
        assert total + sum(clock.seconds().values()) == hands.now


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Six iterations, gone on with to twelve, by a clock that counts phases."""
    folder = tmp_path_factory.mktemp("timed")
    with pytest.MonkeyPatch.context() as patch:
        hands = Ticking()
        for module in (clock_module, averages):
            patch.setattr(module, "time", hands)
        for iterations in (6, 12):
            settings = [f"train.iterations={iterations}", f"train.log_every={_COUNT}", "train.checkpoint_every=3"]
            Trainer(tiny_config(folder, dataset, *settings, f"train.global_batch={_BATCH}"), ALONE).run()
    return folder


def test_phases_add_up_to_the_time_between_two_rows(run_dir: Path) -> None:
    rows = read_metrics(run_dir)
    assert [row["iteration"] for row in rows] == [3, 6, 9, 12]
    for row in rows:
        passed = _COUNT * _BATCH / row["samples_per_second"]
        assert passed > _COUNT * len(_PHASES - {"other"})
        assert _COUNT * sum(row["seconds"].values()) == pytest.approx(passed, abs=1.01)  # the two are read in turn


def test_no_phase_is_lost_over_a_resume(run_dir: Path) -> None:
    """A row tells of what came after the row before it, and the first after a start has none before it."""
    first, second, third, fourth = (set(row["seconds"]) for row in read_metrics(run_dir))
    assert first == third == _PHASES
    assert second == fourth == _PHASES | _AFTER_A_ROW
