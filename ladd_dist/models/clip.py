"""CLIP in a transformers folder, by which pictures are compared and scored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ladd_dist.errors import LaddError, MissingWeights
from ladd_dist.models.configs import transformers_config
from ladd_dist.models.files import in_one_line, read_json
from ladd_dist.models.loading import SavedModel
from ladd_dist.models.shards import TRANSFORMERS, weight_files
from ladd_dist.models.values import COUNT, POSITIVE, Table

_VISION: Table = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"), COUNT),
    **dict.fromkeys(("num_attention_heads", "num_channels", "image_size", "patch_size"), COUNT),
    "layer_norm_eps": POSITIVE,
}
_TEXT_TOWER = (r"^text_model\.", r"^text_projection\.weight$", r"^logit_scale$")
"""What a whole CLIP has beside its vision tower."""


class VisionTower(NamedTuple):
    """What embeds pictures: ``network`` is not loaded yet, ``side`` the pictures' that it takes, in pixels."""

    network: SavedModel
    processor: CLIPImageProcessor
    side: int


class WholeClip(NamedTuple):
    """What compares pictures with text."""

    network: SavedModel
    processor: CLIPImageProcessor
    tokenizer: Any


def vision_tower(folder: str) -> VisionTower:
    """A CLIP folder's vision tower, held against its weights' headers, and what prepares pictures for it.

    Raises:
        MissingWeights: naming the first file that is missing, damaged or of another model.
    """
    with _weights(folder) as path:
        network = _vision(path, weight_files(path, TRANSFORMERS))
        processor = _processor(path, network.config)
        network.check()
    return VisionTower(network, processor, network.config["image_size"])


def whole_clip(folder: str) -> WholeClip:
    """A CLIP folder's both towers, held against their weights' headers, and what prepares pictures and text for them.

    Raises:
        MissingWeights: as of `vision_tower`.
    """
    with _weights(folder) as path:
        network = _clip(path, weight_files(path, TRANSFORMERS))
        config = network.config
        processor = _processor(path, transformers_config(CLIPVisionConfig, path, ["clip"], _VISION))
        network.check()
        with in_one_line(f"{path}: its tokenizer cannot be loaded"):
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        largest, known = max(tokenizer.get_vocab().values()), config["text_config"]["vocab_size"]
        if largest >= known:
            raise LaddError(f"{path}: its tokenizer makes tokens up to {largest}, but it knows {known}, from 0 on")
    return WholeClip(network, processor, tokenizer)


def vision_on_meta(folder: str) -> nn.Module:
    """What `vision_tower` will load, without storage, by config.json alone.

    Raises:
        MissingWeights: if that is missing, or makes no CLIP.
    """
    with _weights(folder) as path:
        return _vision(path, []).on_meta()


def clip_on_meta(folder: str) -> nn.Module:
    """The same of `whole_clip`."""
    with _weights(folder) as path:
        return _clip(path, []).on_meta()


def _vision(path: Path, files: list[Path]) -> SavedModel:
    config = transformers_config(CLIPVisionConfig, path, ["clip_vision_model", "clip"], _VISION)
    return SavedModel(CLIPVisionModelWithProjection, path, config, files, _TEXT_TOWER)


def _clip(path: Path, files: list[Path]) -> SavedModel:
    return SavedModel(CLIPModel, path, transformers_config(CLIPConfig, path, ["clip"], {}), files)


def pixels(processor: CLIPImageProcessor, images: Tensor) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] as CLIP takes them: ``(B, 3, S, S)``, normalised, on the CPU."""
    prepared: Tensor = processor(images=list(images.cpu()), do_rescale=False, return_tensors="pt").pixel_values
    return prepared


@contextmanager
def _weights(folder: str) -> Iterator[Path]:
    """The folder, if it is there; whatever is wrong with it is one of missing weights."""
    path = Path(folder)
    if not path.is_dir():
        get = f"hf download openai/clip-vit-large-patch14 --local-dir {path}"
        raise MissingWeights(f"clip:{path}: there is no such folder: put a transformers CLIP there, such as by {get}")
    try:
        yield path
    except LaddError as error:
        raise MissingWeights(str(error)) from None


def _processor(path: Path, config: Mapping[str, Any]) -> CLIPImageProcessor:
    """What prepares pictures, tried on one."""
    file = path / "preprocessor_config.json"
    read_json(file)
    with in_one_line(f"{file} prepares no pictures"):
        processor = CLIPImageProcessor.from_pretrained(path)
        prepared = pixels(processor, torch.zeros(1, 3, 8, 16))
    wanted = (1, config["num_channels"], config["image_size"], config["image_size"])
    if prepared.shape != wanted or not prepared.isfinite().all():
        found = f"{file} makes {tuple(prepared.shape)} of a picture"
        raise LaddError(f"{found}, but config.json wants finite numbers of {wanted}: download both again")
    return processor
