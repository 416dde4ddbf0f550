"""The weights of a diffusers folder's transformer, read range by range out of its safetensors files."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ladd_dist.models.folder import component, weight_files
from ladd_dist.models.reduction import Part
from ladd_dist.models.tensors import StoredTensors

_PREFIX = "net."
"""Of a backbone's names before those in the folder's files."""
_NEAR = 4
"""Rows at most so far apart are read in one piece: to read each alone takes longer than those between them."""
_UNREAD = ContextVar[Callable[[int], Tensor] | None]("unread", default=None)


@contextmanager
def unread(instead: Callable[[int], Tensor] = torch.empty) -> Iterator[None]:
    """Within it folders' weights are neither looked for nor read.

    Args:
        instead: makes so many elements that stand for them: memory as it is for a dry run, which needs sizes alone.
    """
    token = _UNREAD.set(instead)
    try:
        yield
    finally:
        _UNREAD.reset(token)


class FolderWeights(StoredTensors):
    """Reads any range of any tensor, unless within `unread`.

    Args:
        folder: a diffusers folder.

    Raises:
        LaddError: if the transformer's weights are missing or not safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        files = () if _UNREAD.get() else weight_files(folder, "transformer")
        super().__init__(component(folder, "transformer"), files)

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened parameter or buffer of `Backbone`."""
        if instead := _UNREAD.get():
            return instead(length)
        key = name.removeprefix(_PREFIX)
        tensor = self._where[key].get_slice(key)
        width = torch.Size(tensor.get_shape()[1:]).numel()
        first = offset // width
        part = tensor[first : -(-(offset + length) // width)].reshape(-1)
        return part[offset - first * width :][:length]


class ReducedWeights:
    """Reads any range of any tensor of a smaller network out of the folder that has the whole one."""

    def __init__(self, folder: FolderWeights, parts: Mapping[str, Part]) -> None:
        self._folder, self._parts = folder, parts

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened parameter or buffer of `Backbone`, in fp32.

        Of the folder's tensor no more is read than the rows in which they lie, and the few between them.
        """
        part = self._parts[name.removeprefix(_PREFIX)]
        width = part.shape[1:].numel()
        first, last = offset // width, -(-(offset + length) // width)
        rows = torch.arange(part.whole[0]) if part.kept[0] is None else part.kept[0]
        result = torch.empty(last - first, *part.shape[1:])
        for start, end in _runs(rows[first:last]):
            result[start:end] = self._rows(part, rows[first + start : first + end])
        return result.flatten()[offset - first * width :][:length]

    def _rows(self, part: Part, rows: Tensor) -> Tensor:
        """Rows of the folder's tensor, which lie near one another, narrowed in their other dimensions."""
        first, count, width = int(rows[0]), int(rows[-1] - rows[0]) + 1, part.whole[1:].numel()
        read = self._folder.read(_PREFIX + part.name, first * width, count * width).view(count, *part.whole[1:])
        for dimension, kept in enumerate((rows - first, *part.kept[1:])):
            read = read if kept is None else read.index_select(dimension, kept)
        return read


def _runs(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Where rows that ascend with small gaps begin and end."""
    steps = rows.diff()
    breaks = ((steps < 1) | (steps > _NEAR)).nonzero().flatten() + 1
    return ((start, end) for start, end in pairwise([0, *breaks.tolist(), len(rows)]) if start < end)
