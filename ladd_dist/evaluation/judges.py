"""Fixed feature spaces in which sets of pictures are compared, picked by ``evaluation.judge``."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ladd_dist.errors import LaddError
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


class Judge(Protocol):
    """Judges pictures ``(B, 3, H, W)`` in [0, 1] of any bucket."""

    @property
    def name(self) -> str:
        """What the scores are called."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features ``(n, F)`` on the CPU, one or more rows per picture."""
        ...

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor | None:
        """Whether each picture shows what its prompt says, bool ``(B,)``; None if this judge cannot tell."""
        ...


class ClipJudge:
    """CLIP image embeddings: the feature space for a teacher of natural pictures.

    Args:
        folder: a transformers CLIP model with its image processor.

    Raises:
        LaddError: if the folder cannot be loaded.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        vision, self._processor = _clip(folder)
        self._net = vision.load().to(device).eval()
        self._device = device
        self.name = f"clip:{Path(folder).name}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Image embeddings ``(B, F)``."""
        return self._net(_pixels(self._processor, images).to(self._device)).image_embeds.cpu()

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor | None:
        """CLIP embeddings do not say whether a prompt was followed."""
        return None


def check_judge(name: str) -> None:
    """Check the judge that ``evaluation.judge`` names, by config, image processor and headers of weights.

    Raises:
        LaddError: for an unknown name, or naming the first file that is missing, damaged or of another model.
    """
    if (folder := _clip_folder(name)) is not None:
        _clip(folder)[0].check()


def load_judge(name: str, device: torch.device) -> Judge:
    """Build the judge that ``evaluation.judge`` names.

    Raises:
        LaddError: as of `check_judge`, or if it cannot be loaded.
    """
    if (folder := _clip_folder(name)) is not None:
        return ClipJudge(folder, device)
    from ladd_dist.digits.judge import DigitJudge

    return DigitJudge(device)


def _clip_folder(name: str) -> str | None:
    """The folder of a CLIP judge; None for the embedded one."""
    kind, _, folder = name.partition(":")
    if name == "digits":
        return None
    if kind != "clip" or not folder:
        raise LaddError(f"evaluation.judge={name} is unknown: use 'digits' or 'clip:FOLDER'")
    if not Path(folder).is_dir():
        raise LaddError(f"evaluation.judge={name}: there is no such folder, put a transformers CLIP model there")
    return folder


def _clip(folder: str) -> tuple[SavedModel, CLIPImageProcessor]:
    """The vision tower of a CLIP folder, and what prepares pictures for it, tried on one."""
    path = Path(folder)
    config = transformers_config(CLIPVisionConfig, path, ["clip_vision_model", "clip"], _VISION)
    files = weight_files(path, TRANSFORMERS)
    file = path / "preprocessor_config.json"
    read_json(file)
    with in_one_line(f"{file} prepares no pictures"):
        processor = CLIPImageProcessor.from_pretrained(folder)
        pixels = _pixels(processor, torch.zeros(1, 3, 8, 16))
    wanted = (1, config["num_channels"], config["image_size"], config["image_size"])
    if pixels.shape != wanted or not pixels.isfinite().all():
        found = f"{file} makes {tuple(pixels.shape)} of a picture"
        raise LaddError(f"{found}, but config.json wants finite numbers of {wanted}: download both again")
    return SavedModel(CLIPVisionModelWithProjection, path, config, files, _TEXT_TOWER), processor


def _pixels(processor: CLIPImageProcessor, images: Tensor) -> Tensor:
    """Pictures ``(B, 3, H, W)`` as CLIP takes them: ``(B, 3, S, S)``, normalised."""
    pixels: Tensor = processor(images=list(images.cpu()), do_rescale=False, return_tensors="pt").pixel_values
    return pixels
