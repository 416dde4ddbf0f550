"""Writing checkpoints beside the training, and everything that can go wrong with it."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, config_in, engine, in_threads, newest, run_state, save, save_at, train
from conftest import ALONE, TINY, tiny_config, tiny_overrides
from launch import join, start_ranks
from torch import Tensor

from ladd_dist import cli
from ladd_dist.checkpoints import writer as checkpoint_writer
from ladd_dist.checkpoints.folders import pin, unpin
from ladd_dist.checkpoints.reader import Checkpoint, RunState, Shards, network_shards, open_iteration
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Shard
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError
from ladd_dist.methods.ladd.sample import Sample
from ladd_dist.training.trainer import Trainer

_PATIENCE = 60.0
"""Seconds after which a test gives up waiting for another thread."""


def weights_of(net: ReplicatedEngine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.module.named_parameters()}


def folders_in(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# Whole or not at all


def test_the_pointer_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, net = config_in(tmp_path), engine(0)
    first = save_at(config, 2, net)

    def killed(root: Path, name: str) -> None:
        Checkpoint(root / name, ALONE)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writer, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(config, 4, net)
    assert newest(tmp_path) == first
    monkeypatch.undo()
    assert save_at(config, 4, net) == newest(tmp_path)


@pytest.mark.parametrize("function", ["save_file", "safe_open", "sha256", "write_sums", "sync", "load"])
def test_a_save_that_dies_leaves_the_one_before_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    config, net = config_in(tmp_path), engine(0)
    first = save_at(config, 2, net)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writer, function, killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(config, 5, net)
    assert folders_in(tmp_path) == [".step-00000005", "latest", "step-00000002"]
    assert newest(tmp_path) == first
    monkeypatch.undo()
    train(net, 1)
    second = save_at(config, 4, net)  # which also clears away what the other left
    assert newest(tmp_path) == second
    assert_same(Checkpoint(second, ALONE).network("student"), weights_of(net))
    assert folders_in(tmp_path) == ["latest", "step-00000002", "step-00000004"]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    config, net = config_in(tmp_path), engine(0)
    save_at(config, 2, net)
    train(net, 1)
    path = save_at(config, 2, net)
    assert_same(Checkpoint(path, ALONE).network("student"), weights_of(net))
    assert folders_in(tmp_path) == ["latest", "step-00000002"]


@pytest.mark.parametrize("acts", range(5))
def test_one_of_the_same_iteration_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acts: int) -> None:
    """As when a run goes back: killed before its n-th renaming or removal, a start has a whole one of it, old or new,
    and later ones are dropped only once the pointer is there."""
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    pin(save_at(config, 2, net), "guard")
    later, old = save_at(config, 4, net), weights_of(net)
    train(net, 1)
    done = 0

    def until_killed(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*given: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > acts:
                raise KeyboardInterrupt
            return act(*given, **options)

        return acting

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", until_killed(Path.rename))
        patched.setattr(checkpoint_writer, "_remove", until_killed(checkpoint_writer._remove))
        patched.setattr(checkpoint_writer, "_point", until_killed(checkpoint_writer._point))
        with pytest.raises(KeyboardInterrupt):
            save_at(config, 2, net)
    CheckpointWriter(config, ALONE)
    here = open_iteration(tmp_path, 2, ALONE)
    assert_same(here.network("student"), old if acts < 2 else weights_of(net))
    assert newest(tmp_path) == (later if acts < 3 else here.path)
    save_at(config, 6, net)
    assert folders_in(tmp_path) == ["latest", "step-00000002", "step-00000002.pinned", "step-00000006"]


@pytest.mark.parametrize("slab", [1, 40, 10**6])
def test_copies_lie_in_few_pieces_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    """PyTorch would page-lock up to twice as much for one tensor by itself."""
    monkeypatch.setattr(checkpoint_writer, "_SLAB", slab)
    sizes = {"a": 10, "none": 0, "b": 30, "c": 35, "d": 12, "e": 5}
    room = checkpoint_writer._room(sizes, pinned=False)
    assert {key: tensor.numel() for key, tensor in room.items()} == sizes
    pieces = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // 4 for tensor in room.values()}
    assert sum(pieces.values()) < 92 + (slab if slab == 40 else 1)
    assert len(pieces) == {1: 5, 40: 3, 10**6: 1}[slab]
    net = engine(0)
    path = save_at(config_in(tmp_path), 2, net)
    assert_same(Checkpoint(path, ALONE).network("student"), weights_of(net))


def test_bits_are_kept_whatever_they_mean(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    path = save(config_in(tmp_path), ALONE, {"student/param/w": Shard(odd.shape, 0, odd)})
    kept = Checkpoint(path, ALONE).network("student")["w"]
    assert torch.equal(kept.view(torch.int32), odd.view(torch.int32))


# Old ones


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    config, net = config_in(tmp_path, f"train.keep_checkpoints={keep}"), engine(0)
    for iteration in range(1, 6):
        save_at(config, iteration, net)
    assert folders_in(tmp_path) == ["latest", *(f"step-{i:08d}" for i in range(6 - keep, 6))]


def test_a_pinned_one_is_kept_beside_the_newest_until_it_is_unpinned(tmp_path: Path) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    pinned = save_at(config, 2, net)
    pin(pinned)
    for iteration in (4, 6):
        save_at(config, iteration, net)
    assert folders_in(tmp_path) == ["latest", "step-00000002", "step-00000002.pinned", "step-00000006"]
    assert open_iteration(tmp_path, 2, ALONE).state.iteration == 2
    with pytest.raises(LaddError, match=r"no checkpoint of iteration 4 in .* \(there: .*02, .*06\)"):
        open_iteration(tmp_path, 4, ALONE)
    unpin(pinned)
    save_at(config, 8, net)
    assert folders_in(tmp_path) == ["latest", "step-00000008"]


def test_what_lies_beyond_the_one_gone_back_to_counts_no_more(tmp_path: Path) -> None:
    """Or a damaged newest one would be kept in place of those that are written after it."""
    config, net = config_in(tmp_path, "train.keep_checkpoints=2"), engine(0)
    save_at(config, 2, net)
    (save_at(config, 9, net) / "state.json").unlink()
    for iteration in (4, 6):
        assert save_at(config, iteration, net) == newest(tmp_path)
    assert folders_in(tmp_path) == ["latest", "step-00000004", "step-00000006"]


def test_what_a_user_keeps_beside_them_stays(tmp_path: Path) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    first = save_at(config, 2, net)
    kept = ["step-00000002-best", "step-notes", ".my-step-by-step", ".step-00000002-draft"]
    for name in kept:
        shutil.copytree(first, first.with_name(name))
    for name in (".step-00000007", ".gone-step-00000001"):  # of a kill
        shutil.copytree(first, first.with_name(name))
    last = save_at(config, 4, net)
    assert folders_in(tmp_path) == sorted([*kept, "latest", last.name])
    (last.parent / "latest").unlink()
    assert newest(tmp_path) == last


def test_old_ones_are_dropped_after_the_new_one_is_verified_and_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    first = save_at(config, 2, net)
    seen: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        original = getattr(checkpoint_writer, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if name == "_remove":
                assert args == (first,)
                assert newest(tmp_path) == first.with_name("step-00000004")
            return original(*args, **kwargs)

        return noted

    for name in ("save_file", "safe_open", "sha256", "sync", "_point", "_remove"):
        monkeypatch.setattr(checkpoint_writer, name, note(name))
    save_at(config, 4, net)
    order = [name for name in seen if name != "sync"]
    assert order == ["save_file", "safe_open", "sha256", "sha256", "sha256", "_point", "_remove"]
    assert seen[seen.index("_point") - 1] == "sync"


def test_an_old_one_that_cannot_be_removed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    first = save_at(config, 2, net)

    def busy(_: Path) -> None:
        raise OSError("Device or resource busy")

    monkeypatch.setattr(checkpoint_writer.shutil, "rmtree", busy)
    second = save_at(config, 4, net)
    assert newest(tmp_path) == second
    assert f"{first} could not be removed (Device or resource busy): remove it by hand" in caplog.text
    monkeypatch.undo()
    save_at(config, 6, net)
    assert folders_in(tmp_path) == ["latest", "step-00000006"]


# Verified


def spoil_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checkpoint_writer.save_file

    def spoiled(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        original(tensors, file, metadata=metadata)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))

    monkeypatch.setattr(checkpoint_writer, "save_file", spoiled)


def spoil_config(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Config.save

    def spoiled(self: Config, path: Path) -> None:
        original(self, path)
        path.write_text(path.read_text().replace("seed: 0", "seed: 1"))

    monkeypatch.setattr(Config, "save", spoiled)


@pytest.mark.parametrize("spoil", [spoil_tensors, spoil_config])
def test_what_does_not_read_back_as_written_is_an_error_before_anything_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=1"), engine(0)
    first = save_at(config, 2, net)
    spoil(monkeypatch)
    with pytest.raises(LaddError, match="does not read back as it was written"):
        save_at(config, 4, net)
    assert newest(tmp_path) == first
    assert folders_in(tmp_path) == ["latest", "step-00000002"]


@pytest.mark.parametrize("left", ["checkpoints", "checkpoints/.step-00000001"])
def test_a_rank_that_writes_to_a_disk_of_its_own_is_noticed(tmp_path: Path, left: str) -> None:
    """Whose folder has the right name but is another one; a killed run may even have left the step's in it."""
    (tmp_path / "1" / left).mkdir(parents=True)
    shards = network_shards("student", engine(0))

    def refused(world: World) -> str:
        with pytest.raises(LaddError) as caught:
            save(config_in(tmp_path / str(world.rank)), world, shards if world.is_main else {})
        return str(caught.value)

    assert all("rank-00001.safetensors" in line or "(rank 1" in line for line in in_threads(2, refused))
    assert folders_in(tmp_path / "0") == []


# Failures


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("no space"), MemoryError("no space")], ids=repr)
def test_whatever_fails_on_one_rank_fails_on_all_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config, shards = config_in(tmp_path), network_shards("student", engine(0))
    original = checkpoint_writer.save_file
    first = in_threads(2, lambda world: save(config, world, shards if world.is_main else {}, 2))[0]

    def full(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        if file.name == "rank-00001.safetensors":
            raise error
        original(tensors, file, metadata=metadata)

    monkeypatch.setattr(checkpoint_writer, "save_file", full)

    def refused(world: World) -> str:
        writer = CheckpointWriter(config, world)
        writer.save(shards if world.is_main else {}, run_state(4, world))
        deadline = time.monotonic() + _PATIENCE
        while not writer.failed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert writer.failed
        with pytest.raises(LaddError) as caught:
            writer.wait()
        assert not writer.failed
        return str(caught.value)

    line = (
        f"checkpoint {tmp_path}/checkpoints/step-00000004 could not be written (rank 1: {type(error).__name__}: no "
        "space); those before it are intact: make room or mend what it says, then start the same command again"
    )
    assert in_threads(2, refused) == [line] * 2
    assert folders_in(tmp_path) == ["latest", first.name]
    assert newest(tmp_path) == first


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(
        LaddError, match=rf"^run_dir={tmp_path} cannot be written to \(rank 0: .*: set it to a folder"
    ):
        CheckpointWriter(config_in(tmp_path), ALONE)


def test_a_folder_that_another_rank_cannot_write_to_is_an_error_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(file: Path) -> None:
        if file.name == ".rank-00001":
            raise OSError("Read-only file system")

    monkeypatch.setattr(checkpoint_writer, "_try_to_write", read_only)

    def refused(world: World) -> str:
        with pytest.raises(LaddError) as caught:
            CheckpointWriter(config_in(tmp_path), world)
        return str(caught.value)

    assert all("(rank 1: OSError: Read-only file system)" in line for line in in_threads(2, refused))


def _train(world: World, arguments: list[str], log_dir: str, full: bool) -> None:
    """The launcher's run; with ``full``, rank 1 cannot write more than some kilobytes into a file after a while.

    Each rank notes at which iteration its writer had failed, and at which the run stopped.
    """
    os.dup2(os.open(f"{log_dir}/rank-{world.rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    noted: dict[str, int] = {}

    def main(launch: cli.Launch) -> None:
        trainer = Trainer(launch.config, launch.world)
        save, write = trainer.writer.save, trainer.writer._write

        def save_to_a_full_disk(shards: Shards, state: RunState) -> Path:
            if full and world.rank == 1 and state.iteration > 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            return save(shards, state)

        def note_failure(*args: Any) -> None:
            try:
                write(*args)
            except LaddError:
                noted["failed"] = trainer.done
                raise

        trainer.writer.save, trainer.writer._write = save_to_a_full_disk, note_failure  # type: ignore[method-assign]
        try:
            trainer.run()
        finally:
            noted["stopped"] = trainer.done
            Path(log_dir, f"noted-{world.rank}.json").write_text(json.dumps(noted))

    sys.argv = ["train.py", "--config", TINY, *arguments]
    cli.run(cli.parser("train"), main)


def test_a_full_disk_on_one_rank_stops_all_soon_and_with_room_the_same_command_goes_on(
    tmp_path: Path, dataset: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = [*tiny_overrides(run_dir, dataset), "engine=fsdp2", "train.micro_batch=null", "train.global_batch=4"]
    arguments += ["train.iterations=18", "train.checkpoint_every=6"]
    assert join(start_ranks(_train, arguments, str(tmp_path), True, size=2)) == [2, 2]
    logs = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)]
    errors = [re.findall(r"error: checkpoint .*", text) for text in logs]
    assert errors[0] == errors[1] and len(errors[0]) == 1, errors
    reason = f"checkpoint {run_dir}/checkpoints/step-00000012 could not be written \\(rank 1: .*File too large.*\\); "
    assert re.match(f"error: {reason}those before it are intact: make room", errors[0][0])
    assert re.findall(r"saved .*/(.*) in [\d.]+ s", logs[0]) == ["step-00000006"]
    assert folders_in(run_dir) == ["latest", "step-00000006"]
    assert newest(run_dir) == run_dir / "checkpoints" / "step-00000006"
    # Without a word from the rank that failed, its peers would only hear of it when they save next, at the end.
    noted = [json.loads((tmp_path / f"noted-{rank}.json").read_text()) for rank in range(2)]
    assert noted[0]["stopped"] == noted[1]["stopped"] <= min(note["failed"] for note in noted) + 2, noted

    assert join(start_ranks(_train, arguments, str(tmp_path), False, size=2)) == [0, 0]
    assert f"resuming from {run_dir}/checkpoints/step-00000006" in (tmp_path / "rank-0.txt").read_text()
    assert folders_in(run_dir) == ["latest", "step-00000012", "step-00000018"]


def _die_while_writing(world: World, config: Config) -> str:
    def killed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    shards = network_shards("student", engine(0))
    writer = CheckpointWriter(config, world)
    writer.save(shards if world.is_main else {}, run_state(2, world))
    writer.wait()
    if world.rank == 1:
        checkpoint_writer.save_file = killed  # type: ignore[assignment]
    writer.save(shards if world.is_main else {}, run_state(4, world))
    writer.wait()
    return "written"


def test_a_rank_that_dies_while_writing_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert join(start_ranks(_die_while_writing, config, size=2)) == [1, -signal.SIGKILL]
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-00000002"


def _leave_while_writing(world: World, config: Config) -> None:
    original = checkpoint_writer.save_file

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.5)
        original(*args, **kwargs)

    checkpoint_writer.save_file = slow
    writer = CheckpointWriter(config, world)
    writer.save(network_shards("student", engine(0)), run_state(2, world))
    sys.exit(2)


def test_a_process_that_leaves_finishes_the_checkpoint_that_it_is_writing(tmp_path: Path) -> None:
    assert join(start_ranks(_leave_while_writing, config_in(tmp_path))) == [2]
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-00000002"


# Beside the training


class Gate:
    """A disk that takes nothing before it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open, self.reached = threading.Event(), threading.Event()
        self._save_file = checkpoint_writer.save_file
        monkeypatch.setattr(checkpoint_writer, "save_file", self._wait)

    def _wait(self, *args: Any, **kwargs: Any) -> None:
        self.reached.set()
        assert self._open.wait(_PATIENCE), "nobody opened the disk"
        self._save_file(*args, **kwargs)

    def open(self) -> None:
        self._open.set()


def test_a_checkpoint_does_not_change_with_the_weights_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, net = Gate(monkeypatch), engine(0)
    train(net, 1)
    before = weights_of(net)
    writer = CheckpointWriter(config_in(tmp_path), ALONE)
    writer.save(network_shards("student", net), run_state(1))
    train(net, 2)
    assert gate.reached.wait(_PATIENCE) and newest(tmp_path) is None
    gate.open()
    writer.wait()
    kept = Checkpoint(tmp_path / "checkpoints" / "step-00000001", ALONE).network("student")
    assert_same(kept, before)
    assert not torch.equal(kept["0.weight"], weights_of(net)["0.weight"])


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, shards = Gate(monkeypatch), network_shards("student", engine(0))
    writer = CheckpointWriter(config_in(tmp_path), ALONE)
    writer.save(shards, run_state(1))
    second = threading.Thread(target=writer.save, args=(shards, run_state(2)))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    gate.open()
    second.join(_PATIENCE)
    writer.wait()
    assert folders_in(tmp_path) == ["latest", "step-00000001", "step-00000002"]


def test_iterations_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    trainer = Trainer(tiny_config(tmp_path, dataset, "train.iterations=4", "train.checkpoint_every=2"), ALONE)
    sample = trainer._sample

    def opens_in_the_fourth(batch: Any, iteration: int) -> Sample:
        if iteration == 3:
            assert gate.reached.wait(_PATIENCE) and newest(tmp_path) is None
            gate.open()
        return sample(batch, iteration)

    monkeypatch.setattr(trainer, "_sample", opens_in_the_fourth)
    trainer.run()
    assert trainer.done == 4
    assert folders_in(tmp_path) == ["latest", "step-00000002", "step-00000004"]


def test_what_is_said_to_be_saved_is_on_disk(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def check(line: str) -> None:
        path = Path(re.fullmatch(r"saved (.*) in \d+\.\d s", line)[1])  # type: ignore[index]
        assert newest(tmp_path) == path
        said.append(path.name)

    monkeypatch.setattr(checkpoint_writer, "log", check)
    Trainer(tiny_config(tmp_path, dataset), ALONE).run()
    assert said == ["step-00000002", "step-00000004", "step-00000006"]


# What goes with the tensors


def with_nan_latents(config: Config, monkeypatch: pytest.MonkeyPatch, iteration: int) -> Trainer:
    """A run with latents that are not numbers in one iteration."""
    trainer = Trainer(config, ALONE)
    sample = trainer._sample

    def spoilt(batch: Any, now: int) -> Sample:
        if now == iteration:
            batch.latents.fill_(torch.nan)
        return sample(batch, now)

    monkeypatch.setattr(trainer, "_sample", spoilt)
    return trainer


def test_skipped_iterations_are_not_counted_as_updates_and_a_resumed_run_knows(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "whole", dataset, "train.iterations=4")
    with_nan_latents(config, monkeypatch, 1).run()
    whole = Checkpoint(tmp_path / "whole" / "checkpoints" / "step-00000004", ALONE)
    assert (whole.state.iteration, whole.state.updates) == (4, {"student": 3, "heads": 3})

    with_nan_latents(tiny_config(tmp_path / "cut", dataset, "train.iterations=4"), monkeypatch, 1)
    root = tmp_path / "cut" / "checkpoints"
    (tmp_path / "whole" / "checkpoints" / "step-00000002").rename(root / "step-00000002")
    trainer = Trainer(tiny_config(tmp_path / "cut", dataset, "train.iterations=4"), ALONE)
    assert (trainer.done, trainer.method.student.updates, trainer.method.heads.updates) == (2, 1, 1)
    trainer.run()
    again = Checkpoint(root / "step-00000004", ALONE)
    for network in ("student", "ema", "heads"):
        assert_same(again.network(network), whole.network(network))
