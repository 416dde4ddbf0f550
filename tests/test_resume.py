"""A run that is killed and started again ends bit for bit like one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import newest
from conftest import ALONE, TINY, tiny_config, tiny_overrides
from launch import ROOT, environment, join, launch, start_ranks
from torch import Tensor

from ladd_dist.checkpoints import writer as checkpoint_writer
from ladd_dist.checkpoints.reader import Checkpoint, RunState, open_iteration
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.learning_rate import rate_changes
from ladd_dist.errors import LaddError
from ladd_dist.files.checksums import read_sums, sha256, write_sums
from ladd_dist.training import tracking
from ladd_dist.training import trainer as trainer_module
from ladd_dist.training.tracking import Tracker, read_metrics
from ladd_dist.training.trainer import Trainer

_MEASURED = {"samples_per_second", "seconds", "host_memory_gib"}


def tensors_of(run_dir: Path) -> dict[str, Tensor]:
    path = newest(run_dir)
    assert path is not None
    opened = Checkpoint(path, ALONE)
    return {key: opened.read(key, 0, shape.numel()) for key, shape in opened.shapes.items()}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in _MEASURED} for row in read_metrics(run_dir)]


def assert_same_run(run_dir: Path, reference: Path) -> None:
    one, other = tensors_of(run_dir), tensors_of(reference)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert rows_of(run_dir) == rows_of(reference)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Six iterations in one go, a checkpoint every two."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    Trainer(tiny_config(run_dir, dataset), ALONE).run()
    return run_dir


def test_the_reference_trains(uninterrupted: Path) -> None:
    rows = rows_of(uninterrupted)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len({row["student_lr"] for row in rows}) == 6
    tensors = tensors_of(uninterrupted)
    assert {key.split("/")[0] for key in tensors} == {"student", "ema", "heads"}
    assert any(
        not torch.equal(tensors[key], tensors[key.replace("ema/", "student/")]) for key in tensors if "ema" in key
    )


def test_the_same_run_twice_is_the_same(tmp_path: Path, dataset: Path, uninterrupted: Path) -> None:
    Trainer(tiny_config(tmp_path, dataset), ALONE).run()
    assert_same_run(tmp_path, uninterrupted)


def go_back(run_dir: Path, data: Path, attempt: int) -> Path:
    """Six iterations in one process that goes back from the fourth to the second once, as an attempt."""
    trainer = Trainer(tiny_config(run_dir, data), ALONE)
    iterations = trainer.iterations()
    assert [next(iterations) for _ in range(4)] == [1, 2, 3, 4]
    trainer.writer.wait()
    trainer.restore(open_iteration(run_dir, 2, ALONE), attempt)
    assert list(iterations) == [3, 4, 5, 6]
    return run_dir


def test_a_live_run_that_goes_back_replays_its_path_or_takes_another_as_another_attempt(
    tmp_path: Path, dataset: Path, uninterrupted: Path
) -> None:
    same, other = (go_back(tmp_path / str(attempt), dataset, attempt) for attempt in (0, 1))
    expected = tensors_of(uninterrupted)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors_of(same).items())
    first, second = rows_of(other)[2], rows_of(other)[4]
    assert first["iteration"] == second["iteration"] == 3 and first["d_loss"] != second["d_loss"]

    resumed = Trainer(tiny_config(other, dataset, "train.iterations=7"), ALONE)
    assert (resumed.done, resumed.attempt) == (6, 1)


def test_a_checkpoint_of_before_there_were_attempts_is_of_the_first(tmp_path: Path, uninterrupted: Path) -> None:
    state = json.loads((uninterrupted / "checkpoints/step-00000006/state.json").read_text())
    assert state.pop("attempt") == 0
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert RunState.read(tmp_path / "state.json").attempt == 0


def test_another_seed_is_another_run(tmp_path: Path, dataset: Path, uninterrupted: Path) -> None:
    Trainer(tiny_config(tmp_path, dataset, "seed=1", "train.iterations=1"), ALONE).run()
    assert rows_of(tmp_path)[0]["d_loss"] != rows_of(uninterrupted)[0]["d_loss"]


def _train_until_killed(world: World, config: Config, owner: str, name: str, count: int) -> None:
    """Train with ``owner.name`` replaced by one that kills the process instead of running the count-th time."""
    holder = {"trainer": Trainer, "save": CheckpointWriter, "writer": checkpoint_writer}[owner]
    original, calls = getattr(holder, name), iter(range(1, count))

    def run_or_die(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(holder, name, run_or_die)
    Trainer(config, world).run()


_MOMENTS = {
    "before the first checkpoint": ("trainer", "_save", 1, None),
    "past a checkpoint": ("save", "_copy", 3, 4),
    "before the tensors are written": ("writer", "save_file", 2, 2),
    "before they are read back": ("writer", "safe_open", 2, 2),
    "before the checksums are written": ("writer", "write_sums", 2, 2),
    "between the folder and the pointer": ("writer", "_point", 2, 2),
    "before the oldest is dropped": ("writer", "_prune", 3, 6),
}


@pytest.mark.parametrize("moment", _MOMENTS)
def test_killed_at_the_worst_moments_it_ends_the_same(
    tmp_path: Path, dataset: Path, uninterrupted: Path, moment: str
) -> None:
    owner, name, count, iteration = _MOMENTS[moment]
    config = tiny_config(tmp_path, dataset)
    assert join(start_ranks(_train_until_killed, config, owner, name, count)) == [-signal.SIGKILL]
    found = newest(tmp_path)
    assert (found and Checkpoint(found, ALONE).state.iteration) == iteration
    Trainer(config, ALONE).run()
    assert_same_run(tmp_path, uninterrupted)
    assert len(list((tmp_path / "checkpoints").glob("*step-*"))) <= 3


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of the trainer."""
    lines: list[str] = []
    for name in ("log", "warn"):
        monkeypatch.setattr(trainer_module, name, lines.append)
    return lines


def test_a_finished_run_started_again_says_so_and_changes_nothing(
    tmp_path: Path, dataset: Path, uninterrupted: Path, said: list[str]
) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    config = tiny_config(tmp_path, dataset)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    Trainer(config, ALONE).run()
    finished = f"{tmp_path} is finished: 6 iterations are done, train.iterations=6: raise it to go on"
    assert said[-1] == finished and not any("rates change" in line for line in said)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert_same_run(tmp_path, uninterrupted)


SECTIONS = ("student_optimizer", "head_optimizer")


def test_an_extended_run_says_how_its_learning_rates_change(
    tmp_path: Path, dataset: Path, uninterrupted: Path, said: list[str]
) -> None:
    """A cosine that had come to its end stretches to the new one; a constant rate does not, and nothing is said."""
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    trainer = Trainer(tiny_config(tmp_path, dataset, "train.iterations=12"), ALONE)
    (line,) = [line for line in said if "rates change" in line]
    assert line == (
        "learning rates change at iteration 6 (train.iterations 6 -> 12): "
        "student_optimizer 0 -> 0.00025, head_optimizer 0 -> 0.0005"
    )
    next(trainer.iterations())
    assert read_metrics(tmp_path)[-1]["student_lr"] == pytest.approx(2.5e-4)
    config = tiny_config(tmp_path, dataset)
    assert rate_changes(config, config, 3, SECTIONS) is None
    constant = ("student_optimizer.decay=constant", "head_optimizer.decay=constant")
    both = [tiny_config(tmp_path, dataset, *constant, f"train.iterations={count}") for count in (6, 12)]
    assert rate_changes(both[0], both[1], 6, SECTIONS) is None
    other = tiny_config(tmp_path, dataset, "head_optimizer.lr=1.0")
    assert rate_changes(config, other, 3, SECTIONS) == (
        "learning rates change at iteration 3 (train.iterations 6): head_optimizer 0.0005 -> 0.5"
    )


def test_a_damaged_checkpoint_is_passed_over_loudly_and_made_anew(
    tmp_path: Path, dataset: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / "step-00000006"
    (newest / "rank-00000.safetensors").write_bytes(b"")
    with caplog.at_level("WARNING"):
        trainer = Trainer(tiny_config(tmp_path, dataset), ALONE)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ladd_dist"]
    assert (
        line.startswith(f"warning: checkpoint {newest} is damaged (rank-00000.safetensors") and "PASSED OVER" in line
    )
    assert trainer.done == 4
    trainer.run()
    assert_same_run(tmp_path, uninterrupted)


def test_rows_behind_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path: Path, dataset: Path) -> None:
    lines = [json.dumps({"iteration": i}) for i in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"iteration": 6, "d_lo')
    Tracker(tiny_config(tmp_path, dataset), ALONE, 4).close()
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_kill_while_the_record_is_taken_over_loses_none_of_it(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"iteration": i}) + "\n" for i in range(1, 6)))

    def killed(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        Tracker(tiny_config(tmp_path, dataset), ALONE, 4)
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_checkpoint_of_another_teacher_is_not_gone_on_from(
    tmp_path: Path, dataset: Path, uninterrupted: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    state = folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"teacher": "another"}))
    write_sums(folder, read_sums(folder) | {"state.json": sha256(state)})
    with pytest.raises(
        LaddError, match=r"was trained with teacher another, but teacher\.path=.*restore that teacher"
    ):
        Trainer(tiny_config(tmp_path / "run", dataset), ALONE)


def kill_when_recorded(arguments: list[str], run_dir: Path, iteration: int) -> None:
    """Start the launcher and kill it once metrics.jsonl shows the iteration."""
    process = subprocess.Popen(
        [sys.executable, "launchers/train.py", *arguments],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = read_metrics(run_dir)
        if rows and rows[-1]["iteration"] >= iteration:
            break
        time.sleep(0.005)
    process.kill()  # alone: Python's resource tracker then frees Streaming's shared memory
    assert process.wait() == -signal.SIGKILL, f"the run ended by itself before iteration {iteration}"


def test_the_launcher_killed_twice_and_started_again_ends_the_same(tmp_path: Path, dataset: Path) -> None:
    iterations = "train.iterations=24"
    Trainer(tiny_config(tmp_path / "reference", dataset, iterations), ALONE).run()
    run_dir = tmp_path / "killed"
    arguments = ["--config", TINY, *tiny_overrides(run_dir, dataset), iterations]
    kill_when_recorded(arguments, run_dir, 3)
    kill_when_recorded(arguments, run_dir, 9)
    assert launch(["train.py", *arguments]).returncode == 0
    assert_same_run(run_dir, tmp_path / "reference")
