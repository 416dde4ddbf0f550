"""Samples of shards on local disk, without what Streaming does for remote ones or leaves to the operating system.

Each shard is opened once, not for each sample: that is more than half of what reading a small one costs
(`docs/log.md`, 2026-11-29), and on a parallel file system it asks the one server that all nodes ask. And there are no
threads that look 143 times a second for something to download.
"""

import os
import resource
from collections import OrderedDict
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from streaming import StreamingDataset

from ladd_dist.data.damage import named, redraw
from ladd_dist.data.order import PADDING

_NUMBER = np.dtype("<u4")
"""A shard is a count of samples, where each begins, where the last one ends, and then the samples."""
_MOST = 4096
"""Shards that stay open, however many the process may open."""


class ShardDataset(StreamingDataset):
    """Streaming's dataset for streams that have no remote: nothing is downloaded, and no shard evicted.

    Args:
        settings: Streaming's own.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._open = OpenShards(_affordable())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This rank's samples, or this loader process's, from the position that was loaded or the next epoch on."""
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        for number in self._get_work(*self._resume_incr_epoch()):
            if number != PADDING:
                yield self.get_item(number)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """A sample by its number in the dataset; a compressed shard is decompressed beside itself first.

        Args:
            retry: Streaming's, for what it downloads; unused.

        Raises:
            LaddError: if the shard has vanished, cannot be read, or is shorter than it was.
        """
        shard_id, number = self.spanner[sample_id]
        shard = self.shards[shard_id]
        path = Path(shard.dirname, shard.split, shard.raw_data.basename)
        with named(path, redraw(path.parent)):
            try:
                data = self._open.read(path, number)
            except FileNotFoundError:
                if shard.zip_data is None:
                    raise
                self.prepare_shard(shard_id)
                data = self._open.read(path, number)
        sample: dict[str, Any] = shard.decode_sample(data)
        return sample


class _Shard(NamedTuple):
    file: FileIO
    edges: np.ndarray
    """Where samples begin, and where the last one ends, ``(n + 1,)``."""


class OpenShards:
    """Shards, of which those read last stay open. Processes that fork share the files, not a position in them.

    Args:
        limit: how many stay open, at least one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shards: OrderedDict[Path, _Shard] = OrderedDict()

    def read(self, path: Path, number: int) -> bytes:
        """The bytes of a shard's sample.

        Raises:
            OSError: if the shard is missing or cannot be read.
            ValueError: if it is shorter than its header says.
        """
        shard = self._shards.get(path) or self._opened(path)
        self._shards.move_to_end(path)
        begin, end = (int(edge) for edge in shard.edges[number : number + 2])
        return _read(shard.file, begin, end - begin)

    def _opened(self, path: Path) -> _Shard:
        if len(self._shards) == self._limit:
            self._shards.popitem(last=False)[1].file.close()
        file = FileIO(path)
        (count,) = np.frombuffer(_read(file, 0, _NUMBER.itemsize), _NUMBER)
        edges = np.frombuffer(_read(file, _NUMBER.itemsize, _NUMBER.itemsize * (int(count) + 1)), _NUMBER)
        self._shards[path] = _Shard(file, edges)
        return self._shards[path]


def _affordable() -> int:
    """A quarter of the files that the process may open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if allowed == resource.RLIM_INFINITY else max(1, min(_MOST, allowed // 4))


def _read(file: FileIO, offset: int, size: int) -> bytes:
    """Raises: ValueError: if the file ends before."""
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise ValueError(f"it ends at {offset + len(data)}, not {offset + size} bytes")
    return data
