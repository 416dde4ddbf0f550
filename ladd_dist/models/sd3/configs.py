"""Configs of a diffusers SD3 folder's components, of checked values."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, T5Config

from ladd_dist.models.configs import diffusers_config, transformers_config
from ladd_dist.models.files import read_json
from ladd_dist.models.folder import component, components
from ladd_dist.models.sd3.layout import T5
from ladd_dist.models.values import (
    COUNT,
    COUNTS,
    INDICES,
    NAMES,
    NUMBER,
    POSITIVE,
    Table,
    check_values,
    whole_number,
)

_TRANSFORMER: Table = {
    **dict.fromkeys(("sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim"), COUNT),
    **dict.fromkeys(("num_attention_heads", "joint_attention_dim", "caption_projection_dim"), COUNT),
    # Without a size diffusers keeps no table of positions in its files, and no published teacher is without one.
    **dict.fromkeys(("pooled_projection_dim", "pos_embed_max_size"), COUNT),
    "out_channels": COUNT.or_null(),
    "dual_attention_layers": INDICES,
}
_VAE: Table = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"), COUNT),
    **dict.fromkeys(("down_block_types", "up_block_types"), NAMES),
    "block_out_channels": COUNTS,
    "scaling_factor": POSITIVE,
    "shift_factor": NUMBER.or_null(),
}
_CLIP: Table = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "projection_dim"), COUNT),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "max_position_embeddings"), COUNT),
    "eos_token_id": whole_number(0),
    "layer_norm_eps": POSITIVE,
}
_T5: Table = {
    **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), COUNT),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), COUNT),
    "layer_norm_epsilon": POSITIVE,
}
_CLIP_TOKENS = 77
_TOKENIZER: Table = {"model_max_length": whole_number(3).or_null()}
"""A beginning, an end, and a token between them."""


def load_config(folder: str | Path) -> dict[str, Any]:
    """The transformer's config of a diffusers folder, without its weights.

    Raises:
        LaddError: if the folder has none, one of another class, or values that cannot be used.
    """
    config = diffusers_config(SD3Transformer2DModel, component(folder, "transformer"), _TRANSFORMER)
    if config["out_channels"] is None:
        config["out_channels"] = config["in_channels"]
    return config


def vae_config(folder: str | Path) -> dict[str, Any]:
    """The autoencoder's config.

    Raises:
        LaddError: if the folder has none, one of another class, or values that cannot be used.
    """
    return diffusers_config(AutoencoderKL, component(folder, "vae"), _VAE)


def text_config(folder: str | Path, name: str) -> dict[str, Any]:
    """A text encoder's config.

    Raises:
        LaddError: if the folder has none, one of another kind, or values that cannot be used.
    """
    path = component(folder, name)
    if name == T5:
        return transformers_config(T5Config, path, ["t5"], _T5)
    return transformers_config(CLIPTextConfig, path, ["clip_text_model", "clip"], _CLIP)


def tokenizer_config(folder: str | Path, name: str) -> dict[str, Any]:
    """A tokenizer's own settings.

    Raises:
        LaddError: if the folder has none, or values that cannot be used.
    """
    file = component(folder, name) / "tokenizer_config.json"
    config = read_json(file)
    check_values(file, config, _TOKENIZER)
    return config


def clip_tokens(folder: str | Path) -> int:
    """Tokens of CLIP, as diffusers' pipeline takes their number from its first tokenizer, if it has one."""
    first = "tokenizer"
    own = tokenizer_config(folder, first).get("model_max_length") if first in components(folder) else None
    return own or _CLIP_TOKENS
