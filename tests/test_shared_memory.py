"""Jobs that start at the same moment on one machine do not meet in shared memory."""

from pathlib import Path
from typing import Any

from launch import run_ranks
from streaming.base.world import World as StreamingWorld

from ladd_dist.data import reader
from ladd_dist.distributed.world import World

_JOBS, _DATASETS = 4, 30


def _numbers(world: World, folder: str, nodes: int, count: int) -> list[int]:
    """Take numbers as this many datasets of one job do, on ranks dealt to nodes, and keep them."""
    place = StreamingWorld(nodes, world.size // nodes, 1, world.rank)
    taken: list[Any] = [reader.dataset.get_shm_prefix([folder], [None], place) for _ in range(count)]
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
