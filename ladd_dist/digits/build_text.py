"""Build the digits teacher's tokenizer and text encoders: real CLIP classes, tiny and made for the grammar."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from ladd_dist.digits.prompts import all_prompts

MAX_TOKENS = 10
"""The longest sentence, "a five on top of a nine", is 7 words, plus begin and end."""

HIDDEN = 32
WORD_DEVIATION = 0.5


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one token."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while any(len(piece) > 1 for piece in pieces.values()):
        pairs = Counter(pair for piece in pieces.values() for pair in pairwise(piece))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, piece in pieces.items():
            pieces[word] = _apply(piece, best)
    return merges


def _apply(piece: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in piece:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A ``CLIPTokenizer`` in which every word of the grammar is one token; every byte is one too.

    So a prompt outside the grammar also tokenizes. The two files that the class reads go to ``folder``.
    """
    words = sorted({word for prompt in all_prompts() for word in prompt.text.split()})
    merges = _merges(words)
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A 2-layer CLIP text tower of width 32, freshly initialised, for ``tokenizer``."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        projection_dim=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        # CLIP pools at the first of these; the library's default id is another word here.
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    # CLIP starts its embeddings at 0.02, for long training. SD3 takes the hidden states without the final
    # norm, so here the words would drown in the transformer's biases for the first thousand steps.
    nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=WORD_DEVIATION)
    nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=WORD_DEVIATION)
    return encoder
