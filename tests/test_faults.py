"""A run that is killed at any moment and started again ends bit for bit like one that was left alone.

In CI three kills for each engine; `make faults` sets LADD_FAULT_POINTS for more.
"""

import json
import mmap
import os
import random
import signal
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median

import pytest
from conftest import ALONE, tiny_config
from launch import join, start_ranks
from recorded import Kill, assert_same_run, kills_of, own_data, segments_of, train, train_until_killed

from ladd_dist.config import Config
from ladd_dist.data import patches
from ladd_dist.data.mds import Manifest
from ladd_dist.data.reader import LatentReader
from ladd_dist.training.tracking import read_metrics

POINTS = int(os.environ.get("LADD_FAULT_POINTS", "2"))
_BATCH, _EVERY = 4, 2
_ITERATIONS = _EVERY * (POINTS + 3)
_RANKS = {"local": 1, "fsdp2": 2, "zero3": 2}
_WRITE_SECONDS = 0.4
"""Of a checkpoint on the slow disk."""
_HANG = 600.0


def plan(points: int, ranks: int, seconds: float) -> list[Kill]:
    """Random moments in the order of the run: any time, and within the writing of a checkpoint, in turn; and one
    right after the pointer has moved.

    Args:
        seconds: that an iteration takes.
    """
    draw = random.Random(points)
    last = _ITERATIONS - 2 * _EVERY
    kills = [Kill("pointer", draw.randrange(1, last), 0.0, None)]
    for number in range(points):
        point, length = ("iteration", seconds) if number % 2 else ("write", _WRITE_SECONDS)
        victim = draw.choice([None, draw.randrange(ranks)])
        kills.append(Kill(point, draw.randrange(last + 1), draw.uniform(0, length), victim))
    return sorted(kills, key=lambda kill: kill.iteration)


def config_of(engine: str, run_dir: Path, data: Path) -> Config:
    settings = [f"engine={engine}", f"train.global_batch={_BATCH}", "train.micro_batch=null"]
    counts = [f"train.iterations={_ITERATIONS}", f"train.checkpoint_every={_EVERY}"]
    return tiny_config(run_dir, data, *settings, *counts)


@pytest.mark.slow
@pytest.mark.timeout(1200 + 300 * POINTS)
@pytest.mark.parametrize("engine", list(_RANKS))
def test_killed_at_random_moments_a_run_ends_the_same(
    tmp_path: Path, dataset: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size, begin = _RANKS[engine], time.monotonic()
    with own_data(dataset, tmp_path) as data:
        reference, run_dir = tmp_path / "reference", tmp_path / "killed"
        assert join(start_ranks(train, config_of(engine, reference, data), size=size), _HANG) == [0] * size
        assert segments_of(data) == []
        kills = plan(POINTS, size, median(_BATCH / row["samples_per_second"] for row in read_metrics(reference)))
        for kill in kills:
            codes = join(start_ranks(train_until_killed, config_of(engine, run_dir, data), kill, size=size), _HANG)
            victims = range(size) if kill.victim is None else [kill.victim]
            assert [codes[rank] for rank in victims] == [-signal.SIGKILL] * len(victims), kill
            assert 0 not in codes, kill
        assert segments_of(data), "killed readers left nothing behind for the next start to cope with"
        assert join(start_ranks(train, config_of(engine, run_dir, data), size=size), _HANG) == [0] * size
    done = kills_of(run_dir)
    assert len(done) == len(kills) == POINTS + 1
    assert any(kill["writing"] for kill in done)
    assert_same_run(run_dir, reference)
    writing = sum(kill["writing"] for kill in done)
    alone = sum(kill["victim"] is not None for kill in done)
    with capsys.disabled():
        print(
            f"\n| {engine}, {size} ranks | {len(done)} kills, {alone} of one rank alone | {writing} inside a "
            f"checkpoint write | {len(done)} restarts | bit-identical: yes | {time.monotonic() - begin:.0f} s |"
        )


def test_a_position_that_a_killed_run_left_in_shared_memory_is_not_taken_over(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rank that was killed while the others left in order, Streaming's position alone may stay behind."""
    config = tiny_config(tmp_path, dataset)
    first = [batch.ids for batch in next(iter(LatentReader(config, Manifest.read(dataset), ALONE)))]
    register, left = patches.take_number, []

    def register_where_it_stayed(*args: object) -> tuple[int, object]:
        prefix, memory = register(*args)
        left.append(SharedMemory(f"{prefix:06}_resume", create=True, size=mmap.PAGESIZE))
        position = {"epoch": 1, "sample_in_epoch": 16, "num_canonical_nodes": 1, "shuffle_seed": 0}
        text = json.dumps(position).encode()
        left[0].buf[: len(text)] = text
        return prefix, memory

    monkeypatch.setattr(patches, "take_number", register_where_it_stayed)
    reader = LatentReader(config, Manifest.read(dataset), ALONE)
    assert [batch.ids for batch in next(iter(reader))] == first
    assert reader.state_dict() == {"epoch": 0, "samples": 8}
    left[0].close()
    left[0].unlink()
