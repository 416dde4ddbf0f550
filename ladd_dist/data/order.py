"""The order of samples: Streaming's for one rank, dealt out to as many as there are.

Its order for several (MosaicML Streaming 0.13, ``base/batching/per_stream.py``) is another for each number of them,
unless that divides all buckets: samples repeated to make shares equal (``base/partition/orig.py``) may fill a batch
that one rank would not have had, and with another number of batches all of an epoch is shuffled otherwise.
"""

import numpy as np
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.batching.per_stream import generate_work_per_stream_batching
from streaming.base.world import World

PADDING = -1
"""In an order of samples: none, where loader processes would have unequal numbers of batches."""
_ONE_RANK = World(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)


def deal(_: str, dataset: StreamingDataset, world: World, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
    """Streaming's ``generate_work`` for a dataset whose ``batch_size`` is that of all ranks together.

    Returns:
        Numbers of samples ``(nodes, ranks of each, loader processes of each, batches of each, samples of each)``; the
        loader processes of a rank take turns.
    """
    size = dataset.batch_size
    assert isinstance(size, int)
    order = generate_work_per_stream_batching(dataset, _ONE_RANK, epoch, sample_in_epoch).reshape(-1, size)
    padding = np.full((-len(order) % world.workers_per_rank, size), PADDING)
    places = world.workers_per_rank, world.num_nodes, world.ranks_per_node, size // world.num_ranks
    return np.concatenate([order, padding]).reshape(-1, *places).transpose(2, 3, 1, 0, 4)
