"""What safetensors files hold by their headers, against the network that a config describes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from ladd_dist.errors import LaddError

_DTYPES = ("F64", "F32", "F16", "BF16")
"""As safetensors names them."""


class StoredTensors:
    """The tensors of one network; the files stay on disk, mapped into memory.

    Args:
        path: the network's folder.
        files: its weights, each of them whole.
    """

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self.path = path
        opened: list[Any] = [safe_open(file, "pt") for file in files]
        self._where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118

    def check(self, network: nn.Module, unread: Iterable[str] = ()) -> None:
        """Hold names, shapes and dtypes against a network's, before anything is allocated.

        Of the names of a tied tensor one is enough.

        Args:
            network: as its config describes it, on the meta device.
            unread: patterns of names that may be there without a place in the network.

        Raises:
            LaddError: naming the first tensor that is missing, differs, or has no place in the network, which would
                then be another one than the weights were trained in.
        """
        state = network.state_dict(keep_vars=True)
        for key, tensor in state.items():
            if key in self._where:
                self._check_tensor(key, list(tensor.shape))
            elif not any(other is tensor and name in self._where for name, other in state.items()):
                raise LaddError(f"{self.path} has no tensor {key}: its weights do not belong to its config.json")
        for key in sorted(self._where.keys() - state.keys()):
            if not any(re.search(pattern, key) for pattern in unread):
                raise LaddError(f"{self.path} has a tensor {key}, for which its config.json has no place")

    def _check_tensor(self, key: str, wanted: list[int]) -> None:
        stored = self._where[key].get_slice(key)
        if (shape := stored.get_shape()) != wanted:
            raise LaddError(f"{self.path}: {key} has shape {shape}, but config.json says {wanted}")
        if (dtype := stored.get_dtype()) not in _DTYPES:
            raise LaddError(f"{self.path}: {key} is {dtype}: save it in one of {', '.join(_DTYPES)}")
