"""SD3 transformers of fewer blocks and heads, made of the parts of a whole one.

Depth: the kept blocks follow one another. The last one of an SD3 has no further use for the text: it lacks what
updates it, and its norm of the text has only the scale and shift of the first two of six chunks. A block that becomes
the last one therefore computes the same image tokens as it did.

Width: every layer of D channels keeps d, ``heads x attention_head_dim``. Queries, keys and values keep the first
heads. Whatever lies on or beside the residual stream (the text's, and the embedding of time and pooled text) keeps
every D/d-th channel, in each of the chunks of the feed-forward's hidden layer and of the modulation. Of the position
table, whose channels are sines and cosines first of the one coordinate and then of the other, from high to low
frequencies, that is the same share of every kind; where d divides D, it is the table that diffusers makes for the
smaller width. The first half of the channels would know one coordinate alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from ladd_dist.config import Recomputation
from ladd_dist.errors import LaddError
from ladd_dist.models.files import in_one_line
from ladd_dist.models.folder import component
from ladd_dist.models.reduction import Part, Reduced
from ladd_dist.models.sd3.configs import load_config
from ladd_dist.models.sd3.transformer import Sd3Backbone

_ALL, _HEADS, _STREAM = "all", "heads", "stream"
_AXES = (
    (r"pos_embed\.pos_embed$", (_ALL, _ALL, _STREAM)),
    (r"pos_embed\.proj\.", (_STREAM, _ALL, _ALL, _ALL)),
    (r"(linear_1|context_embedder)\.", (_STREAM, _ALL)),
    (r"(to|add)_[qkv](_proj)?\.", (_HEADS, _STREAM)),
    (r"(to_out\.0|to_add_out)\.", (_STREAM, _HEADS)),
    (r"norm_(added_)?[qk]\.", (_ALL,)),
    (r"^proj_out\.", (_ALL, _STREAM)),
    (r"", (_STREAM, _STREAM)),
)
"""Names -> what their dimensions run over; the first that matches counts, and a bias has a weight's first one."""

_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.*)")
_TEXT_NORM = "norm1_context.linear."
_SCALE_SHIFT = (1, 0)
"""`AdaLayerNormContinuous` of the last block has scale and shift; `AdaLayerNormZero` shift, scale and four more."""


def reduced(folder: str | Path, layers: Sequence[int] | None, heads: int | None) -> Reduced:
    """A smaller network of a folder's, see `Family.reduce`."""
    config = load_config(folder)
    _check(folder, config, layers, heads)
    layers = range(config["num_layers"]) if layers is None else layers
    heads = heads or config["num_attention_heads"]
    smaller = {
        **config,
        "num_layers": len(layers),
        "num_attention_heads": heads,
        "caption_projection_dim": heads * config["attention_head_dim"],
        "dual_attention_layers": [i for i, layer in enumerate(layers) if layer in config["dual_attention_layers"]],
    }
    with in_one_line(f"{component(folder, 'transformer') / 'config.json'} makes no network"), torch.device("meta"):
        whole, tensors = (SD3Transformer2DModel.from_config(made).state_dict() for made in (config, smaller))
    cut = _Cut(config, layers, heads)

    def make(dtype: torch.dtype, checkpointing: Recomputation) -> Sd3Backbone:
        return Sd3Backbone(SD3Transformer2DModel.from_config(smaller), dtype, checkpointing)

    return Reduced(make, {name: cut.part(name, whole) for name in tensors})


def _check(folder: str | Path, config: dict[str, Any], layers: Sequence[int] | None, heads: int | None) -> None:
    depth, known = config["num_layers"], config["num_attention_heads"]
    if layers is not None and layers[-1] >= depth:
        raise LaddError(
            f"student.layers has {layers[-1]}, but the {depth} blocks of {folder} are 0 to {depth - 1}: remove it"
        )
    if heads is None:
        return
    if heads > known:
        raise LaddError(f"student.heads={heads}, but {folder} has {known}: set {known} or fewer, or null")
    if (width := config["caption_projection_dim"]) != known * config["attention_head_dim"]:
        raise LaddError(
            f"student.heads={heads}: {folder} has caption_projection_dim={width}, not its "
            "num_attention_heads x attention_head_dim: set student.heads to null"
        )


class _Cut:
    """Which part of each tensor is kept."""

    def __init__(self, config: dict[str, Any], layers: Sequence[int], heads: int) -> None:
        self._layers, self._last = layers, config["num_layers"] - 1
        self._width = config["num_attention_heads"] * config["attention_head_dim"]
        kept = heads * config["attention_head_dim"]
        self._narrower = kept < self._width
        self._heads = torch.arange(kept, device="cpu")  # positions to read at, also of a network without storage
        self._stream = self._heads * self._width // kept

    def part(self, name: str, whole: dict[str, Tensor]) -> Part:
        """Of the tensor ``name`` of the smaller network, given the whole one's."""
        source, chunks = name, None
        if block := _BLOCK.fullmatch(name):
            index, rest = int(block[1]), block[2]
            source = f"transformer_blocks.{self._layers[index]}.{rest}"
            if index == len(self._layers) - 1 and self._layers[index] != self._last and rest.startswith(_TEXT_NORM):
                chunks = _SCALE_SHIFT
        shape = whole[source].shape
        axes = next(axes for pattern, axes in _AXES if re.search(pattern, name))
        kept = [self._kept(axis, size) for axis, size in zip(axes, shape, strict=False)]
        if chunks:
            kept[0] = self._chunks(chunks)
        return Part(source, shape, tuple(kept))

    def _kept(self, axis: str, size: int) -> Tensor | None:
        if axis == _ALL or not self._narrower:
            return None
        return self._heads if axis == _HEADS else self._chunks(range(size // self._width))

    def _chunks(self, chunks: Sequence[int]) -> Tensor:
        """The stream's channels in each of several stretches of all of them."""
        return torch.cat([chunk * self._width + self._stream for chunk in chunks])
