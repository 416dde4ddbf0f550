"""Whole runs for tests: which samples every iteration saw, how they are killed, and whether two are the same."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import torch
from conftest import ALONE
from safetensors.torch import save

from ladd_dist.checkpoints import writer as checkpoint_writer
from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import Requeue
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.sample import Sample
from ladd_dist.supervision.signals import Signals
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

_MEASURED = ("samples_per_second", "seconds", "host_memory_gib")
_RECORD, _KILLS, _ENDS = "order-{}.jsonl", "kills.jsonl", "ends.jsonl"
_PIECES, _PAUSE = 10, 0.02

Note = tuple[int, int, int, list[int]]
"""An iteration, the number of ranks, the rank, and the ids that it was trained on."""
Order = dict[int, list[int]]
"""By iteration: the ids of its global batch, rank by rank."""

# What a run leaves behind


def newest(run_dir: Path) -> Checkpoint:
    """The checkpoint that a run would go on from."""
    found = open_newest(run_dir, ALONE)
    assert found is not None, f"{run_dir} has no checkpoint"
    return found


def tensors_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, moments and averages of all networks, whole."""
    opened = newest(run_dir)
    return {key: opened.read(key, 0, shape.numel()) for key, shape in opened.shapes.items()}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The record without what was measured."""
    return [{k: v for k, v in row.items() if k not in _MEASURED} for row in read_metrics(run_dir)]


def notes_of(run_dir: Path, rank: int | str = "*") -> list[Note]:
    """What a rank, or each one after the other, has noted, oldest first."""
    paths = sorted(run_dir.glob(_RECORD.format(rank)))
    return [tuple(json.loads(line)) for path in paths for line in path.read_text().splitlines()]


def order_of(run_dir: Path) -> Order:
    """What every iteration was trained on; one that ran again, after a kill, saw the same samples again."""
    seen: dict[tuple[int, int, int], list[int]] = {}
    for iteration, size, rank, ids in notes_of(run_dir):
        assert seen.setdefault((iteration, size, rank), ids) == ids, f"iteration {iteration} saw other samples"
    order: Order = {}
    for (iteration, _, _), ids in sorted(seen.items()):
        order.setdefault(iteration, []).extend(ids)
    return order


def ends_of(run_dir: Path) -> list[tuple[int, bool]]:
    """How each rank's process ended: at which iteration, and whether because it was asked to."""
    path = run_dir / _ENDS
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def kills_of(run_dir: Path) -> list[dict[str, Any]]:
    """What the run was doing when it was killed, one entry per kill."""
    return [json.loads(line) for line in (run_dir / _KILLS).read_text().splitlines()]


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """Bit-identical tensors, equal rows, the same samples in the same order."""
    one, other = tensors_of(run_dir), tensors_of(reference)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert rows_of(run_dir) == rows_of(reference)
    assert order_of(run_dir) == order_of(reference)


# Runs


def _append(path: Path, value: object) -> None:
    """One line that a kill right afterwards does not lose."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def note_samples() -> None:
    """Have trainers of this process write down what every iteration is trained on, for `order_of`."""
    draw = Trainer.samples

    def samples(self: Trainer, iteration: int) -> list[Any]:
        drawn, world = draw(self, iteration), self.world
        record = Path(self.config.run_dir) / _RECORD.format(world.rank)
        _append(record, (iteration, world.size, world.rank, [i for sample in drawn for i in sample.batch.ids]))
        return drawn

    Trainer.samples = samples  # type: ignore[method-assign]


def train(world: World, config: Config) -> None:
    """A rank's run as the launcher does it, recorded; returns when it is finished or was asked to stop."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    note_samples()
    trainer = Trainer(config, world, Signals().listen())
    try:
        trainer.run()
        stopped = False
    except Requeue:
        stopped = True
    _append(run_dir / _ENDS, (trainer.done, stopped))


def train_until_asked(world: World, config: Config, iteration: int, rank: int, number: int = signal.SIGTERM) -> None:
    """`train` with a signal to one rank as it begins with an iteration."""
    step = Ladd.iteration

    def signalled(self: Ladd, index: int, samples: list[Sample]) -> Any:
        if (index, world.rank) == (iteration, rank):
            os.kill(os.getpid(), number)
        return step(self, index, samples)

    Ladd.iteration = signalled  # type: ignore[method-assign]
    train(world, config)


# Kills


@dataclass(frozen=True)
class Kill:
    """SIGKILL some seconds after rank 0 has come to a point of its run.

    ``point`` is ``iteration`` (one begins), ``write`` (the writer begins with a checkpoint) or ``pointer`` (it has
    moved ``latest``), the first one at or after ``iteration`` finished iterations. ``victim`` is a rank; None
    stands for all of them at once.
    """

    point: str
    iteration: int
    delay: float
    victim: int | None


def train_until_killed(world: World, config: Config, kill: Kill) -> None:
    """`train` with a slow disk, killed."""
    slow_down_the_disk()
    pids = world.gather(os.getpid())
    victims = pids if kill.victim is None else [pids[kill.victim]]
    if world.rank == 0:
        _arm(Path(config.run_dir), kill, victims)
    train(world, config)


def _arm(run_dir: Path, kill: Kill, victims: list[int]) -> None:
    doing = {"iteration": 0, "writing": False}
    armed = threading.Event()

    def strike() -> None:
        _append(run_dir / _KILLS, {"point": kill.point, "victim": kill.victim, **doing})
        for pid in sorted(victims, key=lambda pid: pid == os.getpid()):  # this process last
            os.kill(pid, signal.SIGKILL)

    def reached(point: str, iteration: int) -> None:
        if point == kill.point and iteration >= kill.iteration and not armed.is_set():
            armed.set()
            threading.Timer(kill.delay, strike).start()

    step, write, point = Ladd.iteration, CheckpointWriter._write, checkpoint_writer._point

    def iteration(self: Ladd, index: int, samples: list[Sample]) -> Any:
        doing["iteration"] = index
        reached("iteration", index)
        return step(self, index, samples)

    def iteration_of(name: str) -> int:
        return int(name.removeprefix("step-"))

    def writing(self: CheckpointWriter, final: Path, *args: Any) -> None:
        doing["writing"] = True
        reached("write", iteration_of(final.name))
        write(self, final, *args)
        doing["writing"] = False

    def pointing(root: Path, name: str) -> None:
        point(root, name)
        reached("pointer", iteration_of(name))

    Ladd.iteration, CheckpointWriter._write = iteration, writing  # type: ignore[method-assign]
    checkpoint_writer._point = pointing


def slow_down_the_disk() -> None:
    """Have files written in pieces and put on disk with pauses, so that kills fall in between."""
    sync = checkpoint_writer.sync

    def slow_save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        content = save(tensors, metadata)
        size = -(-len(content) // _PIECES)
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), size):
                time.sleep(_PAUSE)
                file.write(content[start : start + size])

    def slow_sync(path: Path) -> None:
        time.sleep(_PAUSE)
        sync(path)

    checkpoint_writer.save_file, checkpoint_writer.sync = slow_save, slow_sync


# Shared memory


def segments_of(data: Path) -> list[Path]:
    """Shared memory that MosaicML Streaming has made for a dataset and not freed yet."""
    owned = [p.name[:6] for p in Path("/dev/shm").glob("*_locals") if f"{data}/".encode() in _read(p)]
    return [p for prefix in owned for p in Path("/dev/shm").glob(f"{prefix}_*")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # freed by its owner in the meantime
        return b""


@contextmanager
def own_data(dataset: Path, folder: Path) -> Iterator[Path]:
    """The dataset under a name of its own; frees the shared memory that killed readers of it have left behind."""
    data = folder / "latents"
    data.symlink_to(dataset)
    try:
        yield data
    finally:
        for path in segments_of(data):
            segment = SharedMemory(path.name, create=False)
            segment.close()
            segment.unlink()


def wait_until(holds: Callable[[], bool], seconds: float = 600) -> None:
    """Poll.

    Raises:
        AssertionError: if it does not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
