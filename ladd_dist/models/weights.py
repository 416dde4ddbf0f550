"""The weights of a diffusers folder's transformer, read range by range out of its safetensors files."""

from pathlib import Path

import torch
from torch import Tensor

from ladd_dist.models.folder import component, weight_files
from ladd_dist.models.tensors import StoredTensors

_PREFIX = "net."


class FolderWeights(StoredTensors):
    """Reads any range of any tensor.

    Args:
        folder: a diffusers folder.

    Raises:
        LaddError: if the transformer's weights are missing or not safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(component(folder, "transformer"), weight_files(folder, "transformer"))

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened parameter or buffer of `Backbone`."""
        key = name.removeprefix(_PREFIX)
        tensor = self._where[key].get_slice(key)
        width = torch.Size(tensor.get_shape()[1:]).numel()
        first = offset // width
        part = tensor[first : -(-(offset + length) // width)].reshape(-1)
        return part[offset - first * width :][:length]
