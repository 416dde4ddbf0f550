"""Networks and tokenizers that the libraries saved, checked and loaded by the libraries' own loaders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from ladd_dist.models.files import in_one_line
from ladd_dist.models.folder import component, component_files
from ladd_dist.models.tensors import StoredTensors

_COUNTED = r"(^|\.)position_ids$"
"""0, 1, 2, ...: older versions of the libraries wrote them beside the weights."""


@dataclass(frozen=True)
class SavedModel:
    """A network in a folder of its own.

    Attributes:
        kind: its class in diffusers or transformers.
        path: the folder.
        config: its whole config, of checked values.
        files: its safetensors files, each of them whole.
        unread: patterns of tensors in them for which the class has no place by design.
    """

    kind: Any
    path: Path
    config: Mapping[str, Any]
    files: list[Path]
    unread: tuple[str, ...] = ()

    def check(self) -> None:
        """Hold the weights against the config, by their headers.

        Raises:
            LaddError: if the config makes no network, or the weights are those of another one: the libraries would
                fill what is missing with random numbers.
        """
        known = self.kind._keys_to_ignore_on_load_unexpected or ()
        StoredTensors(self.path, self.files).check(self.on_meta(), (_COUNTED, *known, *self.unread))

    def load(self, **options: Any) -> Any:
        """The network on the CPU.

        Args:
            options: for the library's ``from_pretrained``, such as the dtype.

        Raises:
            LaddError: as of `check`, or if the weights cannot be read.
        """
        self.check()
        with in_one_line(f"{self.path} cannot be loaded"):
            return self.kind.from_pretrained(self.path, use_safetensors=True, **options)

    def on_meta(self) -> nn.Module:
        """Without storage, by its config alone.

        Raises:
            LaddError: if that makes no network.
        """
        problem = f"{self.path / 'config.json'} makes no {self.kind.__name__}"
        with in_one_line(problem), torch.device("meta"):
            if issubclass(self.kind, ModelMixin):
                return self.kind.from_config(self.config)
            return self.kind(self.kind.config_class.from_dict(self.config))


def load_tokenizer(kind: Any, folder: str | Path, name: str) -> Any:
    """A tokenizer of class ``kind``, tried on a word.

    Raises:
        LaddError: if a file is missing or damaged.
    """
    component_files(folder, name)
    path = component(folder, name)
    with in_one_line(f"{path} cannot be loaded"):
        tokenizer = kind.from_pretrained(path)
        tokenizer(["word"], padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    return tokenizer
