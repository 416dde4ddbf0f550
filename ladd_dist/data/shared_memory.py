"""Names in shared memory for a job's dataset, taken so that two jobs on one machine never get the same.

MosaicML Streaming 0.13 looks for a free number first and takes it later, on every rank by itself (its issues 689,
717, 884 and 901). Of two jobs that start at once on a node one ends with ``FileExistsError: '/000000_locals'``, and
ranks that looked at different moments hold different numbers.
"""

import os
from itertools import count
from tempfile import gettempdir

import torch.distributed as dist
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory
from streaming.base.shared.prefix import _get_path, _pack_locals
from streaming.base.world import World


def take_number(streams_local: list[str], streams_remote: list[str | None], world: World) -> tuple[int, SharedMemory]:
    """Streaming's ``get_shm_prefix`` for local streams: each node's leader takes a number and tells its node's ranks.

    Args:
        streams_local: folder of each stream.
        streams_remote: nothing for any of them: a cache that two jobs fill would need Streaming's check for it.
        world: this rank's place.

    Returns:
        The number and the memory that holds it, to be kept as long as the dataset.
    """
    assert not any(streams_remote)
    number, memory = _take(streams_local) if world.is_local_leader else (-1, None)
    if world.num_ranks > 1:
        numbers = [number] * world.num_ranks
        dist.all_gather_object(numbers, number)
        number = numbers[world.node * world.ranks_per_node]
    return number, memory or SharedMemory(_get_path(number, LOCALS), False)


def _take(streams_local: list[str]) -> tuple[int, SharedMemory]:
    free = filter(_is_free, count())
    while True:
        number = next(free)
        data = _pack_locals(streams_local, number)
        try:  # one operation, which only one of several jobs can win
            memory = SharedMemory(_get_path(number, LOCALS), True, len(data))
        except FileExistsError:
            continue
        memory.buf[: len(data)] = data
        return number, memory


def _is_free(number: int) -> bool:
    """Whether no job, running or killed, has taken this number."""
    locks = (os.path.join(gettempdir(), _get_path(number, name)) for name in (BARRIER_FILELOCK, CACHE_FILELOCK))
    return not any(map(os.path.exists, locks)) and not any(_exists(_get_path(number, name)) for name in SHM_TO_CLEAN)


def _exists(name: str) -> bool:
    try:
        SharedMemory(name, False, auto_cleanup=False).cleanup()
    except FileNotFoundError:
        return False
    except (PermissionError, ValueError):  # another user's; taken a moment ago and still empty
        return True
    return True
