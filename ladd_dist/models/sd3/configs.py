"""Configs of a diffusers folder's networks with every key: what a file leaves out has its class's default."""

import inspect
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, T5Config

from ladd_dist.errors import LaddError
from ladd_dist.models.files import read_json
from ladd_dist.models.folder import component
from ladd_dist.models.sd3.layout import T5


def load_config(folder: str | Path) -> dict[str, Any]:
    """The transformer's config of a diffusers folder, without its weights.

    Raises:
        LaddError: if the folder has none, or one of another class.
    """
    config = _with_defaults(SD3Transformer2DModel, folder, "transformer")
    if config["out_channels"] is None:
        config["out_channels"] = config["in_channels"]
    return config


def vae_config(folder: str | Path) -> dict[str, Any]:
    """The autoencoder's config.

    Raises:
        LaddError: if the folder has none, or one of another class.
    """
    return _with_defaults(AutoencoderKL, folder, "vae")


def text_config(folder: str | Path, name: str) -> dict[str, Any]:
    """A text encoder's config.

    Raises:
        LaddError: if the folder has none, or one of another kind.
    """
    path = component(folder, name)
    kind, types = (T5Config, ["t5"]) if name == T5 else (CLIPTextConfig, ["clip_text_model", "clip"])
    if (found := read_json(path / "config.json").get("model_type", types[0])) not in types:
        raise LaddError(f"{path} holds a model of type {found}: only {types[0]} is supported there")
    return kind.from_pretrained(path).to_dict()


def _with_defaults(kind: type, folder: str | Path, name: str) -> dict[str, Any]:
    """As diffusers reads it: keys of `_use_default_values` were never set, so they have the default too."""
    path = component(folder, name)
    config = read_json(path / "config.json")
    if (found := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise LaddError(f"{path} holds a {found}: only {kind.__name__} is supported")
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    unset = config.pop("_use_default_values", [])
    return defaults | {key: value for key, value in config.items() if key not in unset}
