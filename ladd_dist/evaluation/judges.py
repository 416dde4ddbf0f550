"""Fixed feature spaces in which sets of pictures are compared, picked by ``evaluation.judge``."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ladd_dist.errors import LaddError


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
        try:
            self._net = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True).to(device).eval()
            self._processor = CLIPImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise LaddError(
                f"evaluation.judge=clip:{folder} cannot be loaded: {' '.join(str(error).split())}"
            ) from None
        self._device = device
        self.name = f"clip:{Path(folder).name}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Image embeddings ``(B, F)``."""
        pixels = self._processor(images=list(images.cpu()), do_rescale=False, return_tensors="pt").pixel_values
        return self._net(pixels.to(self._device)).image_embeds.cpu()

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor | None:
        """CLIP embeddings do not say whether a prompt was followed."""
        return None


def load_judge(name: str, device: torch.device) -> Judge:
    """Build the judge that ``evaluation.judge`` names.

    Raises:
        LaddError: for an unknown name.
    """
    if name == "digits":
        from ladd_dist.digits.judge import DigitJudge

        return DigitJudge(device)
    kind, _, folder = name.partition(":")
    if kind == "clip" and folder:
        return ClipJudge(folder, device)
    raise LaddError(f"evaluation.judge={name} is unknown: use 'digits' or 'clip:FOLDER'")
