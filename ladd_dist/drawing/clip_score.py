"""The CLIP score of a picture and its prompt (Hessel et al. 2021, arXiv 2104.08718), and what is made like it."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ladd_dist.models.clip import pixels, whole_clip


class ClipScore:
    """100 times the cosine of picture and prompt in a CLIP's space, 0 if that is negative: as torchmetrics has it.

    Longer prompts are cut at the number of tokens that CLIP takes. Preference models that are a CLIP, such as
    PickScore, are used alike.

    Args:
        folder: a transformers CLIP model with its image processor and tokenizer; it is loaded for the first pictures.

    Raises:
        MissingWeights: naming the first file that is missing, damaged or of another model.
    """

    def __init__(self, folder: str) -> None:
        self._saved = whole_clip(folder)

    @torch.no_grad()
    def __call__(self, prompts: list[str], pictures: Tensor) -> Tensor:
        """Scores ``(B,)`` of pictures ``(B, 3, H, W)`` in [0, 1], on whose device CLIP runs."""
        length = self._saved.network.config["text_config"]["max_position_embeddings"]
        text = self._saved.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        prepared = {**text, "pixel_values": pixels(self._saved.processor, pictures)}
        found = self._network.to(pictures.device)(
            **{key: value.to(pictures.device) for key, value in prepared.items()}
        )
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * cosine.clamp(min=0)

    @cached_property
    def _network(self) -> Any:
        return self._saved.network.load().eval()
