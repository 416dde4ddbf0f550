"""The safetensors files of a network in a folder of its own, as its library's ``save_pretrained`` leaves it."""

import os
import re
from pathlib import Path

from ladd_dist.errors import LaddError
from ladd_dist.models.files import read_json, tensor_names

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""What the libraries call their files, without the ending."""


def weight_files(path: Path, stem: str, way_out: str = "") -> list[Path]:
    """The files that a library would load the network from, each of them whole.

    Of twins in another precision, pickles and other formats beside them none is read.

    Args:
        path: the network's folder.
        stem: `DIFFUSERS` or `TRANSFORMERS`.
        way_out: what else than a download helps where there are none, for the error.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    if index := index_files(path, stem):
        return _shards(index[0])
    single = path / f"{stem}.safetensors"
    if not os.path.lexists(single):
        raise _without_weights(path, stem, way_out)
    tensor_names(single)
    return [single]


def index_files(path: Path, stem: str) -> list[Path]:
    """The index of shards, if the network is loaded from those.

    Given a single file too, diffusers takes the shards and transformers the single file.
    """
    index = path / f"{stem}.safetensors.index.json"
    alone = stem == DIFFUSERS or not os.path.lexists(path / f"{stem}.safetensors")
    return [index] if os.path.lexists(index) and alone else []


def _shards(index: Path) -> list[Path]:
    """The files of an index, which lists all their tensors: the libraries pass over those that it does not."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise LaddError(f"{index} is not a safetensors index (no weight_map): download it again")
    files = [index.parent / name for name in sorted(set(listed.values()))]
    for file in files:
        if lost := sorted(tensor_names(file) - listed.keys()):
            raise LaddError(f"{index} does not list {lost[0]}, which {file.name} has: download both again")
    return files


def _without_weights(path: Path, stem: str, way_out: str) -> LaddError:
    """What to do about a network that has its weights as a variant alone, or in another format."""
    variant = re.compile(rf"({stem})\.\w+(\.safetensors(?:\.index\.json)?)|({stem}\.safetensors\.index)\.\w+(\.json)")
    for file in sorted(path.iterdir()):
        if found := variant.fullmatch(file.name):
            name = "".join(part for part in found.groups() if part)
            return LaddError(
                f"{path} has its weights as a variant alone: to use them, mv {file.name} {name} there, "
                "and alike in each component that has no others"
            )
    return LaddError(f"{path} has no {stem}.safetensors: weights must be safetensors, download those{way_out}")
