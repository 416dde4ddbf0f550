"""A rank that dies, fails or hangs ends the job in time and by name; nothing else does."""

import argparse
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import ALONE, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from launch import join, start_ranks

from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.cli import Launch
from ladd_dist.config import Config
from ladd_dist.distributed.world import Position, World
from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_PEER_LOST, LaddError
from ladd_dist.supervision import watchdog
from ladd_dist.supervision.diagnosis import Beat, Diagnosis, Sighting, diagnose
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals
from ladd_dist.supervision.supervisor import supervise
from ladd_dist.supervision.watchdog import Watchdog
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

DEAD_AFTER, HANG, TICK = 2.0, 1.5, 0.1
HANG_LIMIT = 600
"""What the module promises to need at most beyond its timeouts."""


# --- the diagnosis: a table of sightings in, a line out


def beat(iteration: int = 5, step: int = 2, state: str = "runs", error: str = "") -> Beat:
    return Beat("n7", 123, 1, state, iteration, step, ["", "data", "step"][step % 3], error)


def seen(*beats: Beat | None, silent: float = 0, still: float = 0) -> dict[int, Sighting]:
    return {rank: Sighting(b, silent, still) for rank, b in enumerate(beats)}


def text(sightings: dict[int, Sighting]) -> str | None:
    found = diagnose(sightings, 0, dead_after=30, hang_timeout=900)
    return found and found.text


def test_a_job_that_goes_on_has_no_diagnosis() -> None:
    assert text(seen(beat(), beat(), None)) is None
    assert text(seen(beat(), beat(4), silent=29, still=899)) is None
    assert text(seen(beat(state="done"), beat(state="left"), silent=1e6, still=1e6)) is None


def test_a_silent_rank_is_gone() -> None:
    table = seen(beat(), beat(), beat()) | {1: Sighting(beat(120), 31, 31)}
    assert (
        text(table) == "rank 1 (host n7, pid 123) is gone: no sign of it for 31 s, last seen in iteration 120, step"
    )
    assert diagnose(table, 0, 30).gone == (1,)
    assert text({1: Sighting(None, 31, 31)}) == "rank 1 is gone: not one sign of it in 31 s"
    assert "last seen before its first iteration" in text({1: Sighting(beat(0, 0), 31, 31)})


def test_an_error_comes_before_the_silence_that_it_causes() -> None:
    table = seen(beat(), beat(5, 1, "failed", "ValueError: no"), None) | {2: Sighting(beat(), 31, 31)}
    assert text(table) == "rank 1 (host n7, pid 123) ended in iteration 5, data: ValueError: no"


def test_bad_input_is_waited_for_unless_another_error_is_there() -> None:
    refused, failed = beat(0, 1, "refused", "engine=local"), beat(0, 1, "failed", "ValueError: no")
    assert diagnose(seen(beat(), refused), 0, 30).patient
    assert not diagnose(seen(beat(), refused, failed), 0, 30).patient


def test_those_furthest_behind_are_named_in_a_hang() -> None:
    table = seen(beat(), beat(5, 1), beat(), beat(4, 2), still=901)
    assert text(table) == (
        "no rank has moved for 900 s; furthest behind: rank 3 (host n7, pid 123) in iteration 4, step"
    )
    assert diagnose(table, 0, 30, 900).dumps == (3,)
    assert text(table | {2: Sighting(beat(), 0, 899)}) is None, "one rank moves, so it is slow at worst"


def test_a_hang_at_one_place_is_a_collective() -> None:
    found = diagnose(seen(beat(), beat(), beat(), still=901), 0, 30, 900)
    assert found.text == (
        "no rank has moved for 900 s: all 3 stand in iteration 5, step, so it is a collective that hangs"
    )
    assert found.dumps == (0,), "one rank's stacks are enough: they are alike"


def test_the_hosts_of_those_at_fault_are_told_apart() -> None:
    def hosts(bad: Beat, silent: float = 0, still: float = 0) -> tuple[str, ...]:
        table = seen(beat(), beat(), beat(), still=still) | {1: Sighting(bad._replace(host="n8"), silent, still)}
        return diagnose(table, 0, 30, 900).hosts

    assert hosts(beat(), silent=31) == ("n8",)
    assert hosts(beat(state="failed", error="ValueError: no")) == ("n8",)
    assert hosts(beat(state="refused", error="no word of own/7")) == (), "whoever says so is not at fault"
    assert hosts(beat(4), still=901) == ("n8",)
    assert hosts(beat(), still=901) == (), "a collective that hangs is nobody's fault"


def test_work_that_does_not_name_its_phases_never_hangs() -> None:
    assert text(seen(beat(0, 0), beat(0, 0), still=1e6)) is None


def test_a_rank_that_alone_is_left_hangs_by_itself() -> None:
    assert "furthest behind: rank 1 " in text(seen(beat(state="done"), beat(), still=901))


def test_a_lost_rack_needs_no_longer_line() -> None:
    found = diagnose(seen(*[beat()] * 72, silent=31), 0, 30)
    assert found.text.count("rank ") == 8 and found.text.endswith("; and 64 more")
    assert len(found.gone) == 72


BEATS = st.builds(
    beat,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["runs", "runs", "runs", "done", "failed", "refused", "left"]),
)
SECONDS = st.sampled_from([0.0, 5.0, 31.0, 901.0])
TABLES = st.dictionaries(
    st.integers(0, 511), st.builds(Sighting, st.none() | BEATS, SECONDS, SECONDS), min_size=1, max_size=12
)


@given(TABLES)
def test_only_ranks_with_something_against_them_are_named(table: dict[int, Sighting]) -> None:
    found = diagnose(table, 7, dead_after=30, hang_timeout=900)
    failed = {r for r, s in table.items() if s.beat and s.beat.state in ("failed", "refused")}
    gone = {r for r, s in table.items() if s.runs and s.silent > 30}
    stuck = {r for r, s in table.items() if s.runs and s.still > 900 and s.beat and s.beat.step}
    running = {r for r, s in table.items() if s.runs}
    if found is None:
        assert not failed and not gone and (not running or stuck != running)
        return
    assert Diagnosis.of_json(found.to_json()) == found
    assert found.gone == () if failed else set(found.gone) == gone
    named = {int(r) for r in re.findall(r"rank (\d+)", found.text)}
    assert named <= (failed or gone or stuck)
    if not failed and not gone and named:
        assert {table[r].beat.place for r in named} == {min(table[r].beat.place for r in running)}


def test_places_count_the_phases_of_an_iteration() -> None:
    position = Position()
    places = []
    for iteration, phase in [(0, "start"), (1, "data"), (1, "step"), (1, "data"), (2, "data")]:
        position.enter(iteration, phase)
        places.append(position.place)
    assert [p[:2] for p in places] == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]


def test_alone_it_does_nothing() -> None:
    alone = Watchdog(ALONE, 1.0)
    alone.await_diagnosis(RuntimeError("gloo"))
    alone.fail(ValueError())
    alone.stop()
    assert not alone._on


# --- real ranks


def _supervised(
    world: World, folder: Path, config: Config, dead_after: float, main: Callable[[Launch], None]
) -> None:
    """What `cli.run` does on a rank, with its stderr in a file."""
    log = os.open(folder / f"stderr-{world.rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    watchdog.TICK, watchdog.DEAD_AFTER, watchdog._GRACE = TICK, dead_after, 1.5
    try:
        launch = Launch(argparse.Namespace(), config, world)
        supervise(world, config.train.hang_timeout, lambda: main(launch))
    except SystemExit as end:
        os._exit(end.code)


class Job:
    """Ranks under the watchdog."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        main: Callable[[Launch], None],
        size: int,
        dead_after: float = 30.0,
        env: dict[str, str] | None = None,
        namespaces: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.ranks: list[BaseProcess] = start_ranks(
            _supervised, folder, config, dead_after, main, size=size, env=env, namespaces=namespaces
        )

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANG_LIMIT
        while not reached():
            codes = [rank.exitcode for rank in self.ranks]
            assert time.monotonic() < deadline and codes == [None] * len(codes), (codes, self.stderr())
            time.sleep(0.02)

    def hit(self, victim: int, by: signal.Signals) -> list[int]:
        """Send a rank a signal and return the others' exit codes; without the watchdog they would wait for ever."""
        process = self.ranks[victim]
        os.kill(process.pid, by)
        try:
            return join([rank for rank in self.ranks if rank is not process], HANG_LIMIT)
        finally:
            process.kill()
            process.join()

    def stderr(self, rank: int | None = None) -> str:
        files = sorted(self.folder.glob("stderr-*" if rank is None else f"stderr-{rank}"))
        return "".join(file.read_text() for file in files)

    def errors(self) -> list[str]:
        """Every rank's error lines."""
        return [line for line in self.stderr().splitlines() if line.startswith("error: ")]


LOWERED = 3
"""Iterations after which `_train` lowers the limit: a busy machine's imports may keep the interpreter for longer."""


def _train(launch: Launch) -> None:
    for done in Trainer(launch.config, launch.world).iterations():
        if done == LOWERED:
            watchdog.DEAD_AFTER = DEAD_AFTER


@pytest.mark.parametrize(
    ("size", "victim", "by", "sign"),
    [
        (2, 1, signal.SIGKILL, "no sign of it for"),
        (3, 1, signal.SIGSTOP, "no sign of it for"),
        (3, 0, signal.SIGKILL, "the job's store, which it holds, closed the connection"),
        (2, 0, signal.SIGSTOP, "the job's store, which it holds, has not answered for"),
    ],
)
def test_training_that_loses_a_rank_ends_by_name(
    tmp_path: Path, dataset: Path, size: int, victim: int, by: signal.Signals, sign: str
) -> None:
    batch = ["train.global_batch=6", "train.micro_batch=null"]
    config = tiny_config(tmp_path / "run", dataset, "engine=fsdp2", "train.iterations=100000", *batch)
    job = Job(tmp_path, config, _train, size)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run")) > LOWERED + 1)
    pid = job.ranks[victim].pid
    assert job.hit(victim, by) == [EXIT_PEER_LOST] * (size - 1)
    (line,) = job.errors()
    assert re.match(
        rf"error: rank {victim} \(host \S+, pid {pid}\) is gone: {sign}.*, last seen in iteration \d+, ", line
    )
    saved = re.search(r"; the newest checkpoint is (\S+); start the same command again$", line)
    assert saved and Checkpoint(Path(saved[1]), ALONE).state.iteration > 0
    assert "Traceback" not in job.stderr()


def _until(file: Path, launch: Launch) -> None:
    """Beat, move, and meet the others now and then, until the file is there on rank 0."""
    for number in range(10**6):
        launch.world.position.enter(number, "step")
        if number == 20:  # and has beaten in an iteration
            (file.parent / f"started-{launch.world.rank}").touch()
        if any(launch.world.gather(file.exists())):
            return
        time.sleep(0.02)


def _all_started(folder: Path, size: int) -> Callable[[], bool]:
    return lambda: len(list(folder.glob("started-*"))) == size


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "run", tmp_path / "data", f"train.hang_timeout={HANG}")


def test_rank_0_is_named_where_the_launcher_holds_the_store(tmp_path: Path, config: Config) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    job = Job(tmp_path, config, partial(_until, tmp_path / "never"), 3, DEAD_AFTER, env)
    job.wait_until(_all_started(tmp_path, 3))
    assert job.hit(0, signal.SIGKILL) == [EXIT_PEER_LOST] * 2
    (line,) = job.errors()
    assert re.match(r"error: rank 0 \(.*\) is gone: no sign of it for [23] s, last seen in iteration", line)


def _wait_for_all(folder: Path, victim: int, launch: Launch) -> None:
    """The end of work that ranks do at their own pace, which one of them never reaches."""
    started = folder / f"started-{launch.world.rank}"
    if launch.world.rank == victim:
        started.touch()
        signal.pause()
    SharedStop(launch.world, Signals()).agreed(started.touch)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_others_wait_for_without_a_collective_is_missed(
    tmp_path: Path, config: Config, victim: int
) -> None:
    job = Job(tmp_path, config, partial(_wait_for_all, tmp_path, victim), 2, DEAD_AFTER)
    job.wait_until(_all_started(tmp_path, 2))
    assert job.hit(victim, signal.SIGKILL) == [EXIT_PEER_LOST]
    (line,) = job.errors()
    # Its host is known to who has read a beat of it: rank 0, which holds the store, may be gone before that.
    assert re.match(rf"error: rank {victim} (\(host \S+, pid \d+\) )?is gone: ", line)


def test_a_suspended_job_goes_on(tmp_path: Path, config: Config) -> None:
    """As Slurm does to make room for another one."""
    job = Job(tmp_path, config, partial(_until, tmp_path / "go"), 2, DEAD_AFTER)
    job.wait_until(_all_started(tmp_path, 2))
    for by, seconds in ((signal.SIGSTOP, DEAD_AFTER + 1), (signal.SIGCONT, 1.0)):
        for rank in job.ranks:
            os.kill(rank.pid, by)
        time.sleep(seconds)
    (tmp_path / "go").touch()
    assert join(job.ranks) == [0, 0]
    assert job.errors() == []


def _sleep_in(launch: Launch, victims: tuple[int, ...]) -> None:
    world = launch.world
    world.position.enter(5, "data")
    if world.rank in victims:
        _stuck_here()
    world.position.enter(5, "step")
    world.barrier()


def _stuck_here() -> None:
    time.sleep(1000)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_hangs_is_named_and_shows_where(tmp_path: Path, config: Config, victim: int) -> None:
    job = Job(tmp_path, config, partial(_sleep_in, victims=(victim,)), 3)
    assert join(job.ranks) == [EXIT_PEER_LOST] * 3
    (line,) = job.errors()
    assert re.match(
        rf"error: no rank has moved for 2 s; furthest behind: rank {victim} \(.*\) in iteration 5, data; start", line
    )
    assert [rank for rank in range(3) if "_stuck_here" in job.stderr(rank)] == [victim]


def test_a_hang_of_all_at_one_place_is_told_as_that(tmp_path: Path, config: Config) -> None:
    job = Job(tmp_path, config, partial(_sleep_in, victims=(0, 1)), 2)
    assert join(job.ranks) == [EXIT_PEER_LOST] * 2
    (line,) = job.errors()
    assert "all 2 stand in iteration 5, data, so it is a collective" in line
    assert [rank for rank in range(2) if "_stuck_here" in job.stderr(rank)] == [0]


def _raise_on(launch: Launch, victims: tuple[int, ...], error: Exception, work: bool) -> None:
    world = launch.world
    world.barrier()
    world.position.enter(3, "step")
    if world.rank in victims:
        time.sleep(0.3 * world.rank)
        raise error
    while work:  # a rank that does not notice by itself
        time.sleep(0.01)
    world.barrier()


@pytest.mark.parametrize(("victim", "work"), [(0, False), (2, False), (1, True)])
def test_an_exception_is_told_by_its_rank_and_named_by_another(
    tmp_path: Path, config: Config, victim: int, work: bool
) -> None:
    raising = partial(_raise_on, victims=(victim,), error=ValueError("of its\nown"), work=work)
    job = Job(tmp_path, config, raising, 3, dead_after=1000.0)  # the error is there to be read, not to be waited for
    codes = [EXIT_PEER_LOST] * 3
    codes[victim] = 1
    assert join(job.ranks) == codes
    (line,) = job.errors()
    assert re.match(
        rf"error: rank {victim} \(.*\) ended in iteration 3, step: ValueError: of its own; start the same", line
    )
    assert [rank for rank in range(3) if "Traceback" in job.stderr(rank)] == [victim]


def _break(launch: Launch) -> None:
    launch.world.barrier()
    if launch.world.rank == 1:
        watchdog.DEAD_AFTER, watchdog._LINGER = 1.0, 3.0  # the sum is how long it waits for a diagnosis
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection reset by peer")
    time.sleep(1000)


def test_a_collective_that_breaks_by_itself_is_its_ranks_own_error(tmp_path: Path, config: Config) -> None:
    job = Job(tmp_path, config, _break, 2)
    assert join(job.ranks) == [EXIT_PEER_LOST, 1]
    (line,) = job.errors()
    assert re.match(r"error: rank 1 \(.*\) ended .*: RuntimeError: \[gloo.* Connection reset by peer; start", line)


def test_bad_input_on_one_rank_is_named_by_another(tmp_path: Path, config: Config) -> None:
    job = Job(tmp_path, config, partial(_raise_on, victims=(1,), error=LaddError("no data here"), work=False), 2)
    assert join(job.ranks) == [EXIT_PEER_LOST, EXIT_BAD_INPUT]
    named, told = job.errors()
    assert re.match(r"error: rank 1 \(.*\) ended in iteration 3, step: no data here; start", named)
    assert told == "error: no data here"


def test_bad_input_on_all_ranks_is_just_told(tmp_path: Path, config: Config) -> None:
    """Even where they notice it at different times."""
    job = Job(tmp_path, config, partial(_raise_on, victims=(0, 1), error=LaddError("no data"), work=False), 2)
    assert join(job.ranks) == [EXIT_BAD_INPUT] * 2
    assert job.errors() == ["error: no data"] * 2


def _finish(launch: Launch, after: tuple[float, ...]) -> None:
    launch.world.barrier()
    time.sleep(after[launch.world.rank])


def test_ranks_may_finish_at_different_times(tmp_path: Path, config: Config) -> None:
    after = (1.2 * DEAD_AFTER, 0.0, 2.4 * DEAD_AFTER)
    job = Job(tmp_path, config, partial(_finish, after=after), 3, DEAD_AFTER)
    assert join(job.ranks) == [0, 0, 0]
    assert job.errors() == []
