"""Prompts to conditioning, by the teacher's own encoders and tokenizers."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from ladd_dist.conditioning import Conditioning
from ladd_dist.errors import LaddError
from ladd_dist.models.transformer import component, meta_transformer


class TextEncoders:
    """The two CLIP encoders and, where the folder has one, T5, run as diffusers' SD3 pipeline runs them.

    Raises:
        LaddError: if the folder lacks an encoder or tokenizer.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype, device: torch.device, max_t5_tokens: int) -> None:
        component(folder, "text_encoder")
        try:
            # The pipeline reads the transformer's widths, so it gets one without storage.
            self._pipeline = StableDiffusion3Pipeline.from_pretrained(
                folder, transformer=meta_transformer(folder), vae=None, torch_dtype=dtype, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise LaddError(f"text encoders of {folder} cannot be loaded: {' '.join(str(error).split())}") from None
        for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if (module := getattr(self._pipeline, encoder)) is not None:
                module.to(device).eval()
        self._device, self._max_t5_tokens = device, max_t5_tokens

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Embed prompts: context ``(B, L, D)`` and pooled ``(B, P)``."""
        context, _, pooled, _ = self._pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_t5_tokens,
        )
        return Conditioning(context, pooled)
