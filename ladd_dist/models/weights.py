"""The weights of one component of a diffusers folder, read range by range out of its safetensors files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ladd_dist.errors import LaddError
from ladd_dist.models.transformer import component

_FILE = "diffusion_pytorch_model.safetensors"
_PREFIX = "net."


class FolderWeights:
    """Reads any range of any tensor; the files stay on disk, mapped into memory.

    Args:
        folder: a diffusers folder.

    Raises:
        LaddError: if the transformer's weights are missing or not safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = component(folder, "transformer")
        self._files = {name: self._open(name) for name in self._names()}
        self._where = {key: file for file in self._files.values() for key in file.keys()}  # noqa: SIM118

    def _names(self) -> list[str]:
        index = self.path / f"{_FILE}.index.json"
        if not index.is_file():
            return [_FILE]
        try:
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise LaddError(f"{index} is not a safetensors index ({error!r}): download the folder again") from None

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.path / name, "pt")
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise LaddError(f"{self.path / name} cannot be read ({reason}): weights must be safetensors") from None

    def check(self, module: nn.Module) -> None:
        """Hold names and shapes against a network's, before anything is allocated.

        Raises:
            LaddError: naming the first tensor that is missing or differs.
        """
        for name, tensor in module.state_dict().items():
            key = name.removeprefix(_PREFIX)
            if key not in self._where:
                raise LaddError(f"{self.path} has no tensor {key}: its weights do not belong to its config.json")
            shape = self._where[key].get_slice(key).get_shape()
            if list(tensor.shape) != shape:
                raise LaddError(f"{self.path}: {key} has shape {shape}, but config.json says {list(tensor.shape)}")

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened parameter or buffer of `Backbone`."""
        key = name.removeprefix(_PREFIX)
        tensor = self._where[key].get_slice(key)
        width = torch.Size(tensor.get_shape()[1:]).numel()
        first = offset // width
        part = tensor[first : -(-(offset + length) // width)].reshape(-1)
        return part[offset - first * width :][:length]
