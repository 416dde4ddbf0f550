"""Adapters as a safetensors file.

It has the names that diffusers' pipelines load and ComfyUI knows, ``transformer.LAYER.lora_A.weight`` (down) and
``.lora_B.weight`` (up). Ours have the scale in the ups, so that a tool that knows of no alpha draws right, too; of
others ``LAYER.alpha``, which is divided by the rank, or diffusers' metadata is followed, see `lora_metadata`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.errors import LaddError
from ladd_dist.models.files import tensor_names
from ladd_dist.models.lora import Lora
from ladd_dist.models.lora_metadata import METADATA, Scaling

_COMPONENT, _DOWN, _UP, _ALPHA = "transformer", "lora_A.weight", "lora_B.weight", ".alpha"
_BASE, _KEPT = "base", "kept"


def lora_of_file(file: Path) -> Lora:
    """The adapters in a safetensors file.

    Raises:
        LaddError: if it is none, has tensors that are no adapter of a transformer's linear layer, or does not say
            clearly how much they count.
    """
    tensor_names(file)
    with safe_open(file, "pt") as opened:
        stored, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    scaling = Scaling.of(file, metadata[METADATA], _COMPONENT) if METADATA in metadata else None
    layers = _layers(file, stored)
    downs = {_parameter(layer): stored[f"{layer}.{_DOWN}"] for layer in layers}
    ups = {_parameter(layer): stored[f"{layer}.{_UP}"] for layer in layers}
    for name, down in downs.items():
        if down.ndim != 2 or ups[name].ndim != 2 or down.shape[0] != ups[name].shape[1]:
            found = f"{tuple(down.shape)} and {tuple(ups[name].shape)}"
            raise LaddError(f"{file}: {name} has matrices of shapes {found}, which are not of one rank")
        if not down.shape[0]:
            raise LaddError(f"{file}: {name} has matrices of rank 0, which add nothing: leave them out")
    scales = {_parameter(layer): _scale(file, layer, stored, scaling) for layer in layers}
    return Lora(str(file), metadata.get(_BASE), metadata.get(_KEPT), downs, ups, scales)


def _layers(file: Path, stored: Mapping[str, Tensor]) -> set[str]:
    """Those that have adapters, by the file's names for them."""
    prefix = f"{_COMPONENT}."
    layers = {key.removesuffix(f".{_DOWN}") for key in stored if key.endswith(f".{_DOWN}")}
    alphas = {key for key in stored if key.endswith(_ALPHA)}
    known = {f"{layer}.{part}" for layer in layers for part in (_DOWN, _UP)} | alphas
    misnamed = sorted({key for key in stored if not key.startswith(prefix)} | (stored.keys() - known))
    missing = sorted(known - stored.keys())
    if misnamed or missing or not layers:
        what = f"has {misnamed[0]}" if misnamed else f"has no {missing[0]}" if missing else "is empty"
        raise LaddError(f"{file} {what}: adapters have {prefix}LAYER.{_DOWN} and {_UP} for each of their layers")
    return layers


def _parameter(layer: str) -> str:
    return f"net.{layer.removeprefix(f'{_COMPONENT}.')}.weight"


def _scale(file: Path, layer: str, stored: Mapping[str, Tensor], scaling: Scaling | None) -> float:
    """Of a layer's product: 1 where nothing says another."""
    rank, key = stored[f"{layer}.{_DOWN}"].shape[0], f"{layer}{_ALPHA}"
    alpha = stored.get(key)
    if alpha is None:
        return scaling.scale(layer.removeprefix(f"{_COMPONENT}."), rank) if scaling else 1.0
    if scaling:
        raise LaddError(f"{file} has both {key} and {METADATA}, of which no tool reads both: remove one of them")
    if alpha.numel() != 1 or not alpha.isfinite().all():
        raise LaddError(f"{file}: {key} is {alpha.tolist()}, but an alpha is one finite number: save it again")
    return float(alpha) / rank


def save_lora(lora: Lora, file: Path, dtype: torch.dtype) -> None:
    """Write adapters for diffusers' ``load_lora_weights`` and for ComfyUI, the scale in the ups.

    Raises:
        OSError: if that fails.
    """
    tensors: dict[str, Tensor] = {}
    for name in lora.downs:
        layer = f"{_COMPONENT}.{name.removeprefix('net.').removesuffix('.weight')}"
        tensors[f"{layer}.{_DOWN}"] = lora.downs[name].to(dtype)
        tensors[f"{layer}.{_UP}"] = (lora.scales[name] * lora.ups[name].float()).to(dtype)
    said = {_BASE: lora.base, _KEPT: lora.kept}
    save_file(
        tensors, file, metadata={"format": "pt"} | {key: text for key, text in said.items() if text is not None}
    )
