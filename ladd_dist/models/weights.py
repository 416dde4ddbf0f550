"""The weights of one component of a diffusers folder, read range by range out of its safetensors files."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ladd_dist.errors import LaddError
from ladd_dist.models.folder import component, weight_files

_PREFIX = "net."
_DTYPES = ("F64", "F32", "F16", "BF16")
"""As safetensors names them."""


class FolderWeights:
    """Reads any range of any tensor; the files stay on disk, mapped into memory.

    Args:
        folder: a diffusers folder.

    Raises:
        LaddError: if the transformer's weights are missing or not safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = component(folder, "transformer")
        files: list[Any] = [safe_open(file, "pt") for file in weight_files(folder, "transformer")]
        self._where = {key: file for file in files for key in file.keys()}  # noqa: SIM118

    def check(self, module: nn.Module) -> None:
        """Hold names, shapes and dtypes against a network's, before anything is allocated.

        Raises:
            LaddError: naming the first tensor that is missing, differs, or has no place in the network, which would
                then be another one than the weights were trained in.
        """
        for name, tensor in module.state_dict().items():
            key = name.removeprefix(_PREFIX)
            if key not in self._where:
                raise LaddError(f"{self.path} has no tensor {key}: its weights do not belong to its config.json")
            shape = self._where[key].get_slice(key).get_shape()
            if list(tensor.shape) != shape:
                raise LaddError(f"{self.path}: {key} has shape {shape}, but config.json says {list(tensor.shape)}")
            if (dtype := self._where[key].get_slice(key).get_dtype()) not in _DTYPES:
                raise LaddError(f"{self.path}: {key} is {dtype}: save the teacher in one of {', '.join(_DTYPES)}")
        if extra := sorted(self._where.keys() - {name.removeprefix(_PREFIX) for name in module.state_dict()}):
            raise LaddError(f"{self.path} has a tensor {extra[0]}, for which its config.json has no place")

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened parameter or buffer of `Backbone`."""
        key = name.removeprefix(_PREFIX)
        tensor = self._where[key].get_slice(key)
        width = torch.Size(tensor.get_shape()[1:]).numel()
        first = offset // width
        part = tensor[first : -(-(offset + length) // width)].reshape(-1)
        return part[offset - first * width :][:length]
