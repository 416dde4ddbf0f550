"""Adapters as a safetensors file.

It has the names that diffusers' pipelines load and ComfyUI knows, ``transformer.LAYER.lora_A.weight`` (down) and
``.lora_B.weight`` (up). Ours have the scale in the ups, so that a tool that knows of no alpha draws right, too; of
others ``LAYER.alpha`` and diffusers' metadata are followed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.errors import LaddError
from ladd_dist.models.files import tensor_names
from ladd_dist.models.lora import Lora

_COMPONENT, _DOWN, _UP = "transformer", "lora_A.weight", "lora_B.weight"
_BASE, _METADATA = "base", "lora_adapter_metadata"


def lora_of_file(file: Path) -> Lora:
    """The adapters in a safetensors file.

    Raises:
        LaddError: if it is none, or has tensors that are no adapter of a transformer's linear layer.
    """
    tensor_names(file)
    with safe_open(file, "pt") as opened:
        stored, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    prefix = f"{_COMPONENT}."
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in stored.items() if key.endswith(".alpha")}
    layers = {key.removesuffix(f".{_DOWN}") for key in stored if key.endswith(f".{_DOWN}")}
    known = {f"{layer}.{part}" for layer in layers for part in (_DOWN, _UP)} | {f"{layer}.alpha" for layer in alphas}
    misnamed = sorted({key for key in stored if not key.startswith(prefix)} | (stored.keys() - known))
    missing = sorted(known - stored.keys())
    if misnamed or missing or not layers:
        what = f"has {misnamed[0]}" if misnamed else f"has no {missing[0]}" if missing else "is empty"
        raise LaddError(f"{file} {what}: adapters have {prefix}LAYER.{_DOWN} and {_UP} for each of their layers")
    downs = {_parameter(layer): stored[f"{layer}.{_DOWN}"] for layer in layers}
    ups = {_parameter(layer): stored[f"{layer}.{_UP}"] for layer in layers}
    for name, down in downs.items():
        if down.ndim != 2 or ups[name].ndim != 2 or down.shape[0] != ups[name].shape[1]:
            found = f"{tuple(down.shape)} and {tuple(ups[name].shape)}"
            raise LaddError(f"{file}: {name} has matrices of shapes {found}, which are not of one rank")
    default = _alpha(file, metadata)
    scales = {
        _parameter(layer): (alphas.get(layer, default) or rank) / rank
        for layer in layers
        for rank in [downs[_parameter(layer)].shape[0]]
    }
    return Lora(str(file), metadata.get(_BASE), downs, ups, scales)


def _parameter(layer: str) -> str:
    return f"net.{layer.removeprefix(f'{_COMPONENT}.')}.weight"


def _alpha(file: Path, metadata: Mapping[str, str]) -> float | None:
    """One for all layers, by diffusers' metadata."""
    try:
        tree = json.loads(metadata.get(_METADATA, "{}"))
        value = tree.get(f"{_COMPONENT}.lora_alpha", tree.get("lora_alpha"))
        return None if value is None else float(value)
    except (ValueError, TypeError, AttributeError):
        raise LaddError(f"{file} has metadata {_METADATA} that cannot be read: save it again by diffusers") from None


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
    save_file(tensors, file, metadata={"format": "pt"} | ({_BASE: lora.base} if lora.base else {}))
