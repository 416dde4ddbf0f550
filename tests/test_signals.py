"""Signals: a run that is asked to stop is safe on disk and goes on to the same end; traces on request."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import ALONE, TINY, tiny_config, tiny_overrides
from launch import ROOT, environment, launch, run_ranks
from recorded import (
    assert_same_run,
    ends_of,
    newest,
    order_of,
    rows_of,
    slow_down_the_disk,
    tensors_of,
    train,
    train_until_asked,
    wait_until,
)

from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import EXIT_REQUEUE
from ladd_dist.supervision.requests import RequestExchange, Requests
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.preview import Preview
from ladd_dist.training.tracking import read_metrics

STOP = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]

# One process


@pytest.fixture
def handlers() -> Iterator[None]:
    """Gives this process's signals back."""
    numbers = [*STOP, signal.SIGUSR2]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", STOP)
def test_a_request_to_stop_stays(number: int) -> None:
    exchange = RequestExchange(ALONE, Signals().listen())
    assert exchange.begin() == exchange.agree(failed=False) == Requests()
    signal.raise_signal(number)
    assert exchange.agree(failed=False) == exchange.agree(failed=False) == Requests(stop=True)


@pytest.mark.usefixtures("handlers")
def test_a_closed_terminal_does_not_stop_what_nohup_has_started() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Signals().listen()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
def test_a_request_to_profile_counts_once_and_a_failure_as_long_as_it_lasts() -> None:
    exchange = RequestExchange(ALONE, Signals().listen())
    signal.raise_signal(signal.SIGUSR2)
    assert exchange.begin() == Requests()
    assert exchange.agree(failed=True) == Requests(failed=True, profile=True)
    assert exchange.agree(failed=True) == Requests(failed=True)
    assert exchange.agree(failed=False) == Requests()


@pytest.mark.usefixtures("handlers")
def test_a_signal_before_the_first_iteration_is_seen_before_it() -> None:
    signals = Signals().listen()
    signal.raise_signal(signal.SIGTERM)
    assert RequestExchange(ALONE, signals).begin() == Requests(stop=True)


@pytest.mark.usefixtures("handlers")
def test_once_heeded_further_requests_to_stop_are_ignored_until_the_process_is_gone() -> None:
    signals = Signals().listen()
    exchange = RequestExchange(ALONE, signals)
    exchange.agree(failed=False)
    assert [signal.getsignal(number) for number in STOP] == [signals._note] * 3
    signal.raise_signal(signal.SIGUSR1)
    exchange.agree(failed=False)
    assert [signal.getsignal(number) for number in STOP] == [signal.SIG_IGN] * 3


@pytest.mark.usefixtures("handlers")
def test_no_request_is_lost_at_whatever_instruction_its_signal_comes() -> None:
    """The handler runs between two instructions of the code that reads the requests."""
    for moment in range(1000):
        exchange, left = RequestExchange(ALONE, Signals().listen()), [moment]

        def trace(frame: FrameType, event: str, _: Any, left: list[int] = left) -> Any:
            frame.f_trace_opcodes = frame.f_code.co_filename.endswith(("requests.py", "signals.py"))
            if event == "opcode" and frame.f_code.co_name != "_note":
                left[0] -= 1
                if left[0] == -1:
                    signal.raise_signal(signal.SIGTERM)
                    signal.raise_signal(signal.SIGUSR2)
            return trace

        sys.settrace(trace)
        first = exchange.agree(failed=False)
        sys.settrace(None)
        second = exchange.agree(failed=False)
        if left[0] >= 0:
            break
        assert first.stop or second.stop, moment
        assert first.profile != second.profile, moment
    assert 20 < moment < 999


def test_without_listening_a_process_keeps_its_signals() -> None:
    before = [signal.getsignal(number) for number in STOP]
    assert not Signals().stop
    assert [signal.getsignal(number) for number in STOP] == before


# Runs


def config_in(run_dir: Path, data: Path, *overrides: str) -> Config:
    """Eight iterations and no checkpoint but the last one, unless asked for."""
    settings = ["train.iterations=8", "train.checkpoint_every=8", "train.global_batch=4", "train.micro_batch=null"]
    return tiny_config(run_dir, data, *settings, *overrides)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The uninterrupted local run."""
    run_dir = tmp_path_factory.mktemp("alone")
    run_ranks(train, config_in(run_dir, dataset))
    return run_dir


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The uninterrupted run on two ranks."""
    run_dir = tmp_path_factory.mktemp("pair")
    run_ranks(train, config_in(run_dir, dataset, "engine=fsdp2"), size=2)
    return run_dir


@pytest.mark.parametrize("number", STOP[:2])
def test_one_of_two_ranks_is_asked_and_both_stop_at_the_same_iteration(
    tmp_path: Path, dataset: Path, pair: Path, number: int
) -> None:
    config = config_in(tmp_path, dataset, "engine=fsdp2", f"data.workers={STOP.index(number)}")
    run_ranks(train_until_asked, config, 3, 1, number, size=2)
    assert ends_of(tmp_path) == [(5, True)] * 2
    assert newest(tmp_path).state.iteration == 5
    run_ranks(train, config, size=2)
    assert ends_of(tmp_path)[2:] == [(8, False)] * 2
    assert_same_run(tmp_path, pair)


def _train_until_asked_within(world: World, config: Config, moment: str) -> None:
    """Two signals, inside of something that takes its time."""
    owner, name = {"a checkpoint": (CheckpointWriter, "_write"), "a preview": (Preview, "draw")}[moment]
    original = getattr(owner, name)

    def asked(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*args)

    setattr(owner, name, asked)
    slow_down_the_disk()
    train(world, config)


@pytest.mark.parametrize(
    ("moment", "overrides"),
    [("a checkpoint", ["train.checkpoint_every=2"]), ("a preview", ["train.preview_every=2"])],
)
def test_signals_inside_of_something_longer_stop_the_run_after_it(
    tmp_path: Path, dataset: Path, alone: Path, moment: str, overrides: list[str]
) -> None:
    config = config_in(tmp_path, dataset, *overrides)
    run_ranks(_train_until_asked_within, config, moment)
    ((iteration, stopped),) = ends_of(tmp_path)
    assert stopped and 2 < iteration < 6
    assert newest(tmp_path).state.iteration == iteration
    run_ranks(train, config)
    assert_same_run(tmp_path, alone)


def test_the_iterations_since_the_last_row_get_a_row_of_their_own(tmp_path: Path, dataset: Path, alone: Path) -> None:
    config = config_in(tmp_path, dataset, "train.log_every=4")
    run_ranks(train_until_asked, config, 4, 0)
    run_ranks(train, config)
    rows, single = rows_of(tmp_path), rows_of(alone)
    assert [row["iteration"] for row in rows] == [4, 5, 8]
    for row, parts in zip(rows, (single[:4], single[4:5], single[5:]), strict=True):
        for key in ("d_loss", "g_loss", "student_grad_norm"):
            assert row[key] == pytest.approx(sum(part[key] for part in parts) / len(parts), rel=1e-6)


# Launchers


def start(command: list[str], run_dir: Path, dataset: Path, *overrides: str) -> "subprocess.Popen[str]":
    arguments = ["launchers/train.py", "--config", TINY, *tiny_overrides(run_dir, dataset), *overrides]
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for it; what it said."""
    try:
        return process.communicate(timeout=600)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def listens(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) & 1 << (number - 1))


def recorded(run_dir: Path, iteration: int) -> bool:
    rows = read_metrics(run_dir)
    return bool(rows) and rows[-1]["iteration"] >= iteration


@pytest.mark.slow
def test_the_launcher_stops_with_the_requeue_code_and_goes_on_to_the_same_end(tmp_path: Path, dataset: Path) -> None:
    iterations = "train.iterations=30"
    run_ranks(train, tiny_config(tmp_path / "reference", dataset, iterations))
    run_dir = tmp_path / "run"
    process = start([sys.executable], run_dir, dataset, iterations)
    wait_until(lambda: recorded(run_dir, 3))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    said = finish(process)
    assert process.returncode == EXIT_REQUEUE, said
    stopped = newest(run_dir).state.iteration
    assert f"stopped at iteration {stopped} as asked: start the same command again to go on" in said
    assert "Traceback" not in said
    done = launch(["train.py", "--config", TINY, *tiny_overrides(run_dir, dataset), iterations])
    assert done.returncode == 0 and f"at iteration {stopped}" in done.stderr
    reference = tmp_path / "reference"
    assert rows_of(run_dir) == rows_of(reference)
    ours, theirs = tensors_of(run_dir), tensors_of(reference)
    assert [key for key in theirs if not ours[key].equal(theirs[key])] == []


@pytest.mark.slow
def test_a_signal_during_the_start_stops_the_launcher_before_the_first_iteration(
    tmp_path: Path, dataset: Path
) -> None:
    process = start([sys.executable], tmp_path, dataset)
    wait_until(lambda: listens(process, signal.SIGUSR1))
    process.send_signal(signal.SIGUSR1)
    said = finish(process)
    assert process.returncode == EXIT_REQUEUE, said
    assert "stopped at iteration 0 as asked" in said
    assert read_metrics(tmp_path) == [] and not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP[:2])
def test_torchrun_hands_the_signal_on_and_waits_for_the_checkpoint(
    tmp_path: Path, dataset: Path, number: signal.Signals
) -> None:
    """It sends it to each rank's whole process group, loader processes included."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun += ["--signals-to-handle=SIGTERM,SIGUSR1"]
    settings = ["engine=fsdp2", "train.iterations=60", "train.micro_batch=null", "data.workers=1"]
    process = start(torchrun, tmp_path, dataset, *settings)
    wait_until(lambda: recorded(tmp_path, 3))
    process.send_signal(number)
    said = finish(process)
    stopped = newest(tmp_path).state.iteration
    assert f"stopped at iteration {stopped} as asked" in said
    assert process.returncode == 1 and f"got signal: {number.value}" in said


@pytest.mark.slow
def test_an_interrupted_launcher_does_not_wait_for_its_deaf_loader_process(tmp_path: Path, dataset: Path) -> None:
    process = start([sys.executable], tmp_path, dataset, "train.iterations=1000", "data.workers=1")
    wait_until(lambda: recorded(tmp_path, 1))
    process.send_signal(signal.SIGINT)  # to it alone: a terminal's would end the loader process
    said = finish(process)
    assert "KeyboardInterrupt" in said and "DataLoader worker" not in said
    assert process.returncode == -signal.SIGINT


# Traces

PHASES = {"data", "student forward", "teacher forward", "head forward", "head backward", "teacher backward"}
PHASES |= {"student backward", "optimizer", "other"}


def spans_of(path: Path) -> list[str]:
    """Names of the ranges that a trace holds."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def test_a_trace_is_written_by_every_rank_when_one_is_asked_and_changes_no_numbers(
    tmp_path: Path, dataset: Path, pair: Path
) -> None:
    config = config_in(tmp_path, dataset, "engine=fsdp2", "profile.iterations=2")
    run_ranks(train_until_asked, config, 2, 1, signal.SIGUSR2, size=2)
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == [f"step-00000004-rank-0000{rank}.json.gz" for rank in range(2)]
    for name in names:
        spans = spans_of(tmp_path / "profile" / name)
        assert set(spans) >= PHASES
        assert spans.count("student forward") == 2
    assert_same_run(tmp_path, pair)


def test_a_trace_can_be_configured_and_ends_with_the_run(tmp_path: Path, dataset: Path, alone: Path) -> None:
    run_ranks(train, config_in(tmp_path, dataset, "profile.start=6", "profile.iterations=5"))
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "step-00000006-rank-00000.json.gz"
    assert spans_of(path).count("student forward") == 2
    assert_same_run(tmp_path, alone)
    assert order_of(tmp_path)
