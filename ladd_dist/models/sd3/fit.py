"""Whether the parts of a teacher's folder fit each other: configs, and then what they describe."""

from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError
from ladd_dist.models.folder import components
from ladd_dist.models.sd3.configs import load_config, text_config, tokenizer_config, vae_config
from ladd_dist.models.sd3.layout import CLIPS, T5, TOKENIZERS
from ladd_dist.models.sd3.networks import saved
from ladd_dist.models.sd3.tokenizers import tokenizer_of


def check_shapes(folder: str | Path) -> None:
    """Hold a teacher's networks against each other, by their configs alone.

    Raises:
        LaddError: naming the first two numbers that must be the same and are not.
    """
    config = load_config(folder)
    _check_transformer(folder, config)
    _check_vae(folder, config)
    _check_text(folder, config)
    _check_tokens(folder)


def check_parts(folder: str | Path) -> None:
    """Hold tokenizers against their encoders, and weights against their configs, before any are loaded.

    Raises:
        LaddError: naming the first file, token or tensor that is damaged, missing or of another model.
    """
    there = components(folder)
    for encoder in TOKENIZERS:
        if encoder in there:
            tokenizer_of(folder, encoder)
            saved(folder, encoder).check()
    saved(folder, "vae").check()


def _check_transformer(folder: str | Path, config: dict[str, Any]) -> None:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    _same(folder, "transformer's caption_projection_dim", config["caption_projection_dim"], "its own width", width)
    _same(folder, "transformer's out_channels", config["out_channels"], "its in_channels", config["in_channels"])


def _check_vae(folder: str | Path, config: dict[str, Any]) -> None:
    channels = vae_config(folder)["latent_channels"]
    _same(folder, "VAE's latent_channels", channels, "the transformer's in_channels", config["in_channels"])


def _check_text(folder: str | Path, config: dict[str, Any]) -> None:
    """The pipeline puts the CLIPs side by side, pads them to T5's width and lays T5's tokens behind them."""
    first, second = (text_config(folder, name) for name in CLIPS)
    pooled, hidden = (first[key] + second[key] for key in ("projection_dim", "hidden_size"))
    wanted = config["joint_attention_dim"]
    what = "the transformer's pooled_projection_dim"
    _same(folder, "CLIPs' projection_dim in sum", pooled, what, config["pooled_projection_dim"])
    if hidden > wanted:
        raise LaddError(
            f"{folder}: the CLIPs' hidden_size in sum is {hidden}, more than the transformer's joint_attention_dim="
            f"{wanted}: {_REMEDY}"
        )
    if T5 in components(folder):
        width = text_config(folder, T5)["d_model"]
        _same(folder, "T5's d_model", width, "the transformer's joint_attention_dim", wanted)


def _check_tokens(folder: str | Path) -> None:
    """The pipeline pads for both CLIPs to the length that the first tokenizer names."""
    length = tokenizer_config(folder, "tokenizer").get("model_max_length")
    known = min(text_config(folder, name)["max_position_embeddings"] for name in CLIPS)
    if length is None or length > known:
        file = Path(folder) / "tokenizer" / "tokenizer_config.json"
        raise LaddError(f"{file} has model_max_length={length}, but the CLIPs know {known} positions: {_REMEDY}")


def _same(folder: str | Path, left: str, value: int, right: str, other: int) -> None:
    if value != other:
        raise LaddError(f"{folder}: the {left} is {value}, but {right} is {other}: {_REMEDY}")


_REMEDY = "teacher.path must hold components that belong together"
