"""Jobs that start at the same moment on one machine do not meet in shared memory."""

from importlib import reload
from pathlib import Path
from typing import Any

import pytest
import streaming
from conftest import ALONE, tiny_config
from launch import run_ranks
from streaming.base import dataset as streaming_dataset
from streaming.base.world import World as StreamingWorld

from ladd_dist.data import shared_memory
from ladd_dist.data.mds import Manifest
from ladd_dist.data.reader import LatentReader
from ladd_dist.data.shared_memory import take_number
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError

_JOBS, _DATASETS = 4, 30


def _numbers(world: World, folder: str, nodes: int, count: int) -> list[int]:
    """Take numbers as this many datasets of one job do, on ranks dealt to nodes, and keep them."""
    place = StreamingWorld(nodes, world.size // nodes, 1, world.rank)
    taken: list[Any] = [take_number([folder], [None], place) for _ in range(count)]
    assert all(folder.encode() in bytes(memory.buf) for _, memory in taken)
    return [number for number, _ in taken]


def _one_job_each(world: World, folder: str) -> list[int]:
    """Ranks as jobs of their own, none of which ends, and frees its numbers, before the last has taken its own."""
    world.barrier()
    numbers = _numbers(World(0, 1, 0, world.device), folder, 1, _DATASETS)
    world.barrier()
    return numbers


def test_jobs_that_start_together_take_different_numbers(tmp_path: Path) -> None:
    taken = sum(run_ranks(_one_job_each, str(tmp_path), size=_JOBS), [])
    assert len(set(taken)) == _JOBS * _DATASETS


def test_the_ranks_of_a_node_have_its_leaders_number(tmp_path: Path) -> None:
    first, second, third, fourth = run_ranks(_numbers, str(tmp_path), 2, 3, size=4)
    assert first == second and third == fourth
    assert not set(first) & set(third)


def test_streaming_is_patched_by_a_reader_and_not_by_an_import(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, manifest = tiny_config(tmp_path, dataset), Manifest.read(dataset)
    monkeypatch.setattr(streaming_dataset, "get_shm_prefix", None)
    reload(shared_memory)
    assert streaming_dataset.get_shm_prefix is None
    LatentReader(config, manifest, ALONE)
    assert streaming_dataset.get_shm_prefix is not None


def test_another_version_of_streaming_is_refused_in_one_line(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "__version__", "0.14.0")
    with pytest.raises(LaddError, match=r"mosaicml-streaming 0\.14\.0 is installed.* of 0\.13\.\*: install that one"):
        LatentReader(tiny_config(tmp_path, dataset), Manifest.read(dataset), ALONE)
