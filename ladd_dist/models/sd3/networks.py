"""A folder's networks as they are saved."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from ladd_dist.models.folder import component, weight_files
from ladd_dist.models.loading import SavedModel
from ladd_dist.models.sd3.configs import load_config, text_config, vae_config
from ladd_dist.models.sd3.layout import CLIPS, T5

_CONFIGS = {"transformer": load_config, "vae": vae_config}
_KINDS: dict[str, Any] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    **dict.fromkeys(CLIPS, CLIPTextModelWithProjection),
    T5: T5EncoderModel,
}


def vae_on_meta(folder: str | Path) -> nn.Module:
    """The autoencoder without storage, in fp32, by its config alone."""
    return SavedModel(AutoencoderKL, component(folder, "vae"), vae_config(folder), []).on_meta()


def saved(folder: str | Path, name: str) -> SavedModel:
    """A component with weights.

    Raises:
        LaddError: if its config or its weights are missing or damaged.
    """
    config = _CONFIGS[name](folder) if name in _CONFIGS else text_config(folder, name)
    return SavedModel(_KINDS[name], component(folder, name), config, weight_files(folder, name))
