"""The names that SD3's first publication gave its tensors, which single files have, from those of diffusers.

The inverse of diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`: projections to queries, keys and values
are one tensor there, and of modulations that are only scale and shift, shift comes first.
"""

import re
from collections.abc import Collection, Mapping

from ladd_dist.models.family import Joined

_PREFIX = "model.diffusion_model."
_TOP = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    **{f"attn.to_{part}": "x_block.attn.qkv" for part in "qkv"},
    **{f"attn2.to_{part}": "x_block.attn2.qkv" for part in "qkv"},
    **{f"attn.add_{part}_proj": "context_block.attn.qkv" for part in "qkv"},
    **{f"{attn}.norm_{part}": f"x_block.{attn}.ln_{part}" for attn in ("attn", "attn2") for part in "qk"},
    **{f"attn.norm_added_{part}": f"context_block.attn.ln_{part}" for part in "qk"},
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_IN_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_ORDER = re.compile(r"\b(?:to|add)_([qkv])(?:_proj)?\b")


def original_names(names: Collection[str]) -> Mapping[str, Joined]:
    """Of every tensor by its first name: diffusers' tensors of which it is made.

    Args:
        names: diffusers' of all tensors of a transformer.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(_original(name), []).append(name)
    blocks = [int(found[1]) for found in map(_IN_BLOCK.fullmatch, names) if found]
    swapped = ("norm_out.", f"transformer_blocks.{max(blocks)}.norm1_context.")
    return {
        _PREFIX + original: Joined(tuple(sorted(made_of, key=_place)), made_of[0].startswith(swapped))
        for original, made_of in parts.items()
    }


def _original(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    stem, _, kind = name.rpartition(".")
    if block := _IN_BLOCK.fullmatch(stem):
        return f"joint_blocks.{block[1]}.{_BLOCK[block[2]]}.{kind}"
    return f"{_TOP[stem]}.{kind}"


def _place(name: str) -> int:
    """Among those that are one tensor."""
    found = _ORDER.search(name)
    return "qkv".index(found[1]) if found else 0
