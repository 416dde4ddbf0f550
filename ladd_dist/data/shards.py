"""Samples of shards on local disk, each of which is opened once and not, as by Streaming's reader, for each sample.

To open and close the file is more than half of what reading a small sample costs (`docs/log.md`, 2026-11-29), and on a
parallel file system it asks the one server that all nodes ask.
"""

import os
import resource
from collections import OrderedDict
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from streaming import StreamingDataset

from ladd_dist.data.damage import named, redraw

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

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """A sample by its number in the dataset.

        Args:
            retry: Streaming's, for what it downloads; unused.

        Raises:
            LaddError: if the shard has vanished or is shorter than it was.
        """
        shard_id, number = self.spanner[sample_id]
        shard = self.shards[shard_id]
        sample: dict[str, Any] = shard.decode_sample(
            self._open.read(Path(shard.dirname, shard.split, shard.raw_data.basename), number)
        )
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
            LaddError: if the shard is missing, cannot be read, or is shorter than its header says.
        """
        with named(path, redraw(path.parent)):
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
        raise ValueError(f"it ends at {offset + len(data)}, not {offset + size} bytes or later")
    return data
