"""Writes a network's safetensors files tensor by tensor, named as its library's ``save_pretrained`` names them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

_FILE_BYTES = 10 * 10**9
"""Of tensors in one file at most, unless one tensor is larger: diffusers' own limit."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Of dtypes in safetensors."""
_ALIGNMENT = 8


def save_weights(
    path: Path,
    stem: str,
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
    limit: int = _FILE_BYTES,
) -> None:
    """Write a network's tensors, in as many files as the limit needs and, if these are several, their index.

    Args:
        path: the network's folder, which is there.
        stem: of the files' names, see `models.shards`.
        shapes: of all tensors by name, in the order in which they are written.
        dtype: in which they are written.
        read: gives a tensor by name, on the CPU, in any dtype; called once for each, after the one before is written.
        limit: bytes of tensors in one file at most, unless one tensor is larger.

    Raises:
        OSError: if they cannot be written.
    """
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    pattern = f"{stem}{{suffix}}.safetensors"
    plan = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=limit)
    for file, names in plan.filename_to_tensors.items():
        _write(path / file, {name: tensors[name] for name in names}, read)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (path / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(file: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """One file: the header's length in 8 bytes, the header as JSON, and the tensors one after the other."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for name, tensor in tensors.items():
            values = read(name).to(tensor.dtype).contiguous()
            out.write(values.view(-1).view(torch.uint8).numpy().data)
