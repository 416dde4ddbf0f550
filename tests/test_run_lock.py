"""A folder belongs to one job at a time, and no dead job keeps it for long."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import ALONE, tiny_config
from launch import join, start_ranks
from recorded import newest, wait_until

from ladd_dist.checkpoints import writer as checkpoint_writer
from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_PEER_LOST, LaddError
from ladd_dist.files import holder, lock_file, run_lock
from ladd_dist.files.holder import Holder, job
from ladd_dist.files.lock_file import lock_files
from ladd_dist.files.run_lock import RunLock
from ladd_dist.supervision.supervisor import supervise
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

FOREVER = 3600.0


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the seconds; what is not named never happens by itself."""

    def set_to(dead_after: float = FOREVER, beat: float = FOREVER, patience: float = 0.0) -> None:
        monkeypatch.setattr(run_lock, "BEAT", beat)
        monkeypatch.setattr(run_lock, "PATIENCE", patience)
        monkeypatch.setattr(run_lock, "_POLL", 0.02)
        for module in (run_lock, lock_file):
            monkeypatch.setattr(module, "DEAD_AFTER", dead_after)

    set_to()
    return set_to


@pytest.fixture
def acquire(tmp_path: Path, pace: Callable[..., None]) -> Iterator[Callable[[], RunLock]]:
    """Hold the test's folder; what is held is given back."""
    held = []

    def take() -> RunLock:
        held.append(RunLock())
        held[-1].acquire(tmp_path, "run_dir", ALONE)
        return held[-1]

    yield take
    for one in held:
        one.release()


def leave_behind(folder: Path, maker: Holder, number: int = 1, beats: int = 0) -> Path:
    """The file of a holder, as it writes it."""
    path = folder / f".lock-{number}"
    path.touch()
    with path.open("r+") as file:  # in one go, and never empty in between
        file.write(f"{json.dumps(asdict(maker))}\n{path.stat().st_ino}\n0123456789abcdef\n{beats:020d}\n")
    return path


def elsewhere(**changes: str) -> Holder:
    """A process that cannot be seen from here."""
    return replace(Holder("n7", os.getpid(), "another boot", "5", "Slurm job 42"), **changes)


# Who is dead


def test_a_running_process_is_seen_and_a_later_one_of_its_pid_is_not_it() -> None:
    me = Holder.me()
    assert me.seen() and not me.gone()
    assert replace(me, start="1").gone()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_is_gone_also_as_a_zombie(reaped: bool) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    other = replace(Holder.me(), pid=process.pid, start=str(holder._start(process.pid)))
    assert other.seen()
    process.kill()
    if reaped:
        process.wait()
    wait_until(other.gone)
    process.wait()


@pytest.mark.parametrize("table", ["another boot", ""])
def test_a_process_of_another_machine_or_container_is_neither_seen_nor_gone(table: str) -> None:
    other = replace(Holder.me(), pid=2**22 + 1, table=table)
    assert not other.seen() and not other.gone()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "42", "TORCHELASTIC_RUN_ID": "x"}, "Slurm job 42"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "train-0"}, "Kubernetes pod train-0"),
        ({"TORCHELASTIC_RUN_ID": "a1b2"}, "torchrun job a1b2"),
        ({"TORCHELASTIC_RUN_ID": "none"}, ""),
        ({}, ""),
    ],
)
def test_a_job_is_called_as_its_scheduler_calls_it(environment: dict[str, str], name: str) -> None:
    assert job(environment) == name


# Taking


def test_a_held_folder_is_refused_by_host_pid_and_job(
    tmp_path: Path, acquire: Callable[[], RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    me = Holder.me()
    with pytest.raises(LaddError) as refusal:
        acquire()
    named = f"pid {os.getpid()} on host {me.host}, Slurm job 41"
    assert f"run_dir={tmp_path} belongs to a job that is running ({named}): wait for it" in str(refusal.value)
    assert len(lock_files(tmp_path)) == 1


def test_what_is_given_back_leaves_no_trace_and_may_be_taken_again(
    tmp_path: Path, acquire: Callable[[], RunLock]
) -> None:
    for _ in range(3):
        acquire().release()
        assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_of_this_machine_blocks_nobody(tmp_path: Path, acquire: Callable[[], RunLock]) -> None:
    leave_behind(tmp_path, replace(Holder.me(), start="1"), number=7)
    acquire().check()
    assert [path.name for path in lock_files(tmp_path)] == [".lock-8"]


@pytest.mark.parametrize("content", [None, b""], ids=["whole", "killed as it made the file"])
def test_a_silent_holder_of_another_machine_is_waited_for_and_then_taken_for_dead(
    tmp_path: Path,
    acquire: Callable[[], RunLock],
    pace: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(run_lock, "log", said.append)
    pace(dead_after=0.3)
    path = leave_behind(tmp_path, elsewhere())
    if content is not None:
        path.write_bytes(content)
    os.utime(path, (0, 0))  # no clock of another machine counts
    begin = time.monotonic()
    acquire()
    assert time.monotonic() - begin >= 0.3
    (line,) = said
    named = path if content is not None else "pid .* on host n7, Slurm job 42"
    assert line.startswith("waiting up to 0 s for ") and line.endswith(f", which may still hold run_dir={tmp_path}")
    assert content is not None or "on host n7, Slurm job 42" in line, named


def test_the_lock_in_a_copy_of_a_held_folder_is_watched_like_another_machines(
    tmp_path: Path, acquire: Callable[[], RunLock], pace: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder lives on this machine, but never changes the copy."""
    first, copy, second = acquire(), tmp_path.with_name(f"{tmp_path.name}-copy"), RunLock()
    shutil.copytree(tmp_path, copy)
    said: list[str] = []
    monkeypatch.setattr(run_lock, "log", said.append)
    pace(dead_after=0.3)
    begin = time.monotonic()
    second.acquire(copy, "run_dir", ALONE)
    assert time.monotonic() - begin >= 0.3
    (line,) = said
    assert line.startswith("waiting up to 0 s for ") and line.endswith(f", which may still hold run_dir={copy}")
    second.check()
    second.release()
    first.check()
    with pytest.raises(LaddError, match=f"run_dir={tmp_path} belongs to a job that is running"):
        acquire()


def test_a_holder_of_another_machine_that_shows_signs_of_life_is_refused(
    tmp_path: Path, acquire: Callable[[], RunLock]
) -> None:
    leave_behind(tmp_path, elsewhere())
    beat = threading.Timer(0.2, leave_behind, (tmp_path, elsewhere()), {"beats": 1})
    beat.start()
    with pytest.raises(LaddError, match=r"belongs to a job that is running \(pid \d+ on host n7, Slurm job 42\)"):
        acquire()
    beat.join()


@pytest.mark.parametrize("patience", [FOREVER, 0.2])
def test_a_restart_of_the_same_job_waits_for_the_one_that_is_leaving(
    tmp_path: Path,
    acquire: Callable[[], RunLock],
    pace: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    pace(patience=patience)
    first = acquire()
    if patience == FOREVER:
        threading.Timer(0.2, first.release).start()
        acquire().check()
    else:
        with pytest.raises(LaddError, match="belongs to a job that is running"):
            acquire()


def test_of_several_who_take_over_a_dead_holders_folder_one_wins(tmp_path: Path, pace: Callable[..., None]) -> None:
    count, start = 8, threading.Barrier(8)

    def attempt(folder: Path, one: RunLock) -> bool:
        start.wait()
        try:
            one.acquire(folder, "run_dir", ALONE)
        except LaddError:
            return False
        return True

    with ThreadPoolExecutor(count) as pool:
        for turn in range(30):
            folder = tmp_path / str(turn)
            folder.mkdir()
            if turn % 3:
                leave_behind(folder, replace(Holder.me(), start="1"), number=turn)
            locks = [RunLock() for _ in range(count)]
            won = list(pool.map(attempt, [folder] * count, locks))
            assert sum(won) == 1
            locks[won.index(True)].check()
            assert len(lock_files(folder)) == 1
            for one in locks:
                one.release()


def test_who_comes_between_listing_and_taking_is_not_overlooked(
    tmp_path: Path, acquire: Callable[[], RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers begin anew in an empty folder, so that a slow taker and a new one may make different files."""
    dead = leave_behind(tmp_path, replace(Holder.me(), start="1"), number=5)
    claim, other = RunLock._claim, RunLock()

    def late(self: RunLock, *args: object) -> bool:
        monkeypatch.setattr(RunLock, "_claim", claim)
        dead.unlink()
        other.acquire(tmp_path, "run_dir", ALONE)
        return claim(self, *args)

    monkeypatch.setattr(RunLock, "_claim", late)
    with pytest.raises(LaddError, match="belongs to a job that is running"):
        acquire()
    other.check()
    other.release()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaddError, match=r"^data\.path=.*/file/data cannot be written to \(.*\): set it to a folder"):
        RunLock().acquire(tmp_path / "file" / "data", "data.path", ALONE)


# Losing


def stand_still(one: RunLock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that was stopped on another machine, and goes on later."""
    path = one._path
    assert path is not None
    content = path.read_bytes()
    one._mine = content.splitlines(keepends=True)[0].replace(Holder.me().table.encode(), b"another boot") + b"1\n"
    path.write_bytes(one._mine + run_lock._count(0))
    one._renewed = -FOREVER


def test_a_holder_that_was_taken_over_is_told_before_it_writes(
    tmp_path: Path, acquire: Callable[[], RunLock], pace: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pace(dead_after=0.2)
    first = acquire()
    stand_still(first, monkeypatch)
    first.check()
    second = acquire()
    with pytest.raises(LaddError, match=rf"^run_dir={tmp_path} was taken over by another job \(pid {os.getpid()} on"):
        first.check()
    first.release()
    second.check()
    assert len(lock_files(tmp_path)) == 1, "the old holder must not give back what is the new one's"


def test_a_removed_file_is_not_made_anew(
    tmp_path: Path, acquire: Callable[[], RunLock], pace: Callable[..., None]
) -> None:
    pace(beat=0.01)
    one = acquire()
    wait_until(lambda: one._beats > 1)
    next(iter(lock_files(tmp_path))).unlink()
    wait_until(lambda: bool(one.lost))
    assert lock_files(tmp_path) == {}


def test_a_run_that_was_taken_over_writes_no_checkpoint_and_no_record(
    tmp_path: Path, dataset: Path, acquire: Callable[[], RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = acquire()
    trainer = Trainer(tiny_config(tmp_path, dataset), ALONE, lock=one)
    steps = trainer.iterations()
    assert [next(steps) for _ in range(3)] == [1, 2, 3]
    trainer.writer.wait()
    next(iter(lock_files(tmp_path))).unlink()
    one._renewed = -FOREVER
    theirs = tmp_path / "checkpoints" / ".step-00000004"
    theirs.mkdir()
    with pytest.raises(LaddError, match="taken over by another job"):
        next(steps)
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    with pytest.raises(LaddError, match="step-00000004 could not be written .*taken over by another job"):
        trainer._save()
        trainer.writer.wait()
    assert newest(tmp_path).state.iteration == 2 and theirs.is_dir()


def test_a_takeover_while_a_checkpoint_is_written_leaves_it_unpublished(
    tmp_path: Path, dataset: Path, acquire: Callable[[], RunLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = acquire()
    trainer, write = Trainer(tiny_config(tmp_path, dataset), ALONE, lock=one), checkpoint_writer._write_tensors

    def slow(*args: object) -> str:
        one.lost = "taken over"
        return write(*args)

    monkeypatch.setattr(checkpoint_writer, "_write_tensors", slow)
    with pytest.raises(LaddError, match="taken over"):
        list(trainer.iterations())
    assert not list((tmp_path / "checkpoints").glob("step-*"))


# Ranks


def _supervised(world: World, folder: Path, work: Callable[[World, Path], None]) -> None:
    log = os.open(folder / f"stderr-{world.rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    one = RunLock()

    def held() -> None:
        one.acquire(folder, "run_dir", world)
        work(world, folder)

    try:
        supervise(world, FOREVER, held, one)
    except SystemExit as end:
        os._exit(int(end.code or 0))


def _stay(world: World, folder: Path) -> None:
    time.sleep(FOREVER)


def _leave(world: World, folder: Path) -> None:
    world.barrier()


def _fail(world: World, folder: Path) -> None:
    world.barrier()
    if world.rank == 1:
        raise ValueError("no")
    time.sleep(FOREVER)


def test_of_two_jobs_one_is_refused_on_all_its_ranks_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    first = start_ranks(_supervised, tmp_path, _stay)
    wait_until(lambda: bool(lock_files(tmp_path)) and b"\n" in b"".join(lock_files(tmp_path).values()))
    assert join(start_ranks(_supervised, tmp_path, _leave, size=2)) == [EXIT_BAD_INPUT] * 2
    for rank in range(2):
        said = (tmp_path / f"stderr-{rank}").read_text()
        assert said.count("error: ") == 1 and f"is running (pid {first[0].pid} on host" in said, said
    os.kill(first[0].pid or 0, signal.SIGKILL)
    assert join(first) == [-signal.SIGKILL]
    assert len(lock_files(tmp_path)) == 1
    assert join(start_ranks(_supervised, tmp_path, _leave, size=2)) == [0, 0]
    assert lock_files(tmp_path) == {}


def test_a_job_that_ends_because_a_rank_failed_gives_the_folder_back(tmp_path: Path) -> None:
    assert join(start_ranks(_supervised, tmp_path, _fail, size=2)) == [EXIT_PEER_LOST, 1]
    assert lock_files(tmp_path) == {}
