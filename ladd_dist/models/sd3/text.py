"""Prompts to conditioning, by the teacher's own encoders and tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.log import log
from ladd_dist.models.folder import components
from ladd_dist.models.sd3.configs import clip_tokens
from ladd_dist.models.sd3.layout import CLIPS, T5, TOKENIZERS
from ladd_dist.models.sd3.networks import saved
from ladd_dist.models.sd3.tokenizers import tokenizer_of
from ladd_dist.models.sd3.transformer import meta_transformer


class TextEncoders:
    """The two CLIP encoders and, where the folder has one, T5, run as diffusers' SD3 pipeline runs them.

    Without T5 the pipeline puts zeros in the place of its ``max_t5_tokens`` tokens.

    Raises:
        LaddError: if the folder lacks a CLIP encoder or a tokenizer, or one cannot be loaded.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype, device: torch.device, max_t5_tokens: int) -> None:
        parts: dict[str, Any] = {}
        for encoder, tokenizer in TOKENIZERS.items():
            parts |= {encoder: None, tokenizer: None}
            if encoder == T5 and T5 not in components(folder):
                log(f"teacher {folder} has no T5: zeros in its place, as the SD3 pipeline puts there")
                continue
            parts[tokenizer] = tokenizer_of(folder, encoder)
            parts[encoder] = saved(folder, encoder).load(dtype=dtype).to(device).eval()
        # The pipeline reads the transformer's widths, so it gets one without storage.
        self._pipeline = StableDiffusion3Pipeline(
            transformer=meta_transformer(folder), scheduler=None, vae=None, **parts
        )
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


def cut(folder: str | Path, max_t5_tokens: int, prompts: Sequence[str]) -> dict[str, int]:
    """How many prompts have more tokens than CLIP and T5 are given, by those numbers in words.

    Raises:
        LaddError: if the folder lacks a tokenizer, or one cannot be loaded.
    """
    limits = {CLIPS[0]: ("CLIP", clip_tokens(folder))}  # the pipeline holds the second to the first one's
    if T5 in components(folder):
        limits[T5] = "T5", max_t5_tokens
    found = {}
    for encoder, (name, limit) in limits.items():
        tokenizer = tokenizer_of(folder, encoder)
        longer = sum(len(tokenizer(prompt, verbose=False).input_ids) > limit for prompt in prompts)
        found[f"{name}'s {limit} tokens"] = longer
    return found
