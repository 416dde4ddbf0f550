"""Fixed feature spaces in which sets of pictures are compared, picked by ``evaluation.judge``."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ladd_dist.config.values import clip_folder
from ladd_dist.errors import LaddError
from ladd_dist.models.clip import pixels, vision_tower

TEACHER = "teacher"
"""The name for the teacher's own features, which need no judge."""


class Judge(Protocol):
    """Judges pictures ``(B, 3, H, W)`` in [0, 1] of any bucket."""

    @property
    def name(self) -> str:
        """What the scores are called."""
        ...

    @property
    def crop(self) -> int | None:
        """Side in pixels of the pictures that it looks at, to which it reduces larger ones; None if it does not."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features ``(n, F)`` on the CPU, one or more rows per picture, as many for each of one size."""
        ...

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor | None:
        """Whether each picture shows what its prompt says, bool ``(B,)``; None if this judge cannot tell."""
        ...


class ClipJudge:
    """CLIP image embeddings: the feature space for a teacher of natural pictures.

    Args:
        folder: a transformers CLIP model with its image processor.

    Raises:
        MissingWeights: if the folder cannot be loaded.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        network, self._processor, self.crop = vision_tower(folder)
        self._net = network.load().to(device).eval()
        self._device = device
        self.name = f"clip:{Path(folder).name}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Image embeddings ``(B, F)``."""
        return self._net(pixels(self._processor, images).to(self._device)).image_embeds.cpu()

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor | None:
        """CLIP embeddings do not say whether a prompt was followed."""
        return None


def check_judge(name: str) -> None:
    """Check the judge that ``evaluation.judge`` names, by config, image processor and headers of weights.

    Raises:
        MissingWeights: naming the first file that is missing, damaged or of another model.
        LaddError: for an unknown name.
    """
    if (folder := _clip_folder(name)) is not None:
        vision_tower(folder)


def load_judge(name: str, device: torch.device) -> Judge | None:
    """Build the judge that ``evaluation.judge`` names; None for the teacher's own features.

    Raises:
        LaddError: as of `check_judge`, or if it cannot be loaded.
    """
    if (folder := _clip_folder(name)) is not None:
        return ClipJudge(folder, device)
    if name == TEACHER:
        return None
    from ladd_dist.digits.judge import DigitJudge

    return DigitJudge(device)


def _clip_folder(name: str) -> str | None:
    """The folder of a CLIP judge; None for the others."""
    if name in ("digits", TEACHER):
        return None
    if (folder := clip_folder(name)) is None:
        raise LaddError(f"evaluation.judge={name} is unknown: use 'digits', 'teacher' or 'clip:FOLDER'")
    return folder
