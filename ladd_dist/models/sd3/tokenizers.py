"""A folder's tokenizers: whole, and each of one model with its encoder."""

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, T5TokenizerFast

from ladd_dist.errors import LaddError
from ladd_dist.models.folder import component
from ladd_dist.models.loading import load_tokenizer
from ladd_dist.models.sd3.configs import text_config, tokenizer_config
from ladd_dist.models.sd3.layout import T5, TOKENIZERS
from ladd_dist.models.values import check_values, whole_number

_END = "</w>"
"""Ends the last piece of a word."""


def tokenizer_of(folder: str | Path, encoder: str) -> Any:
    """The tokenizer of a text encoder.

    Raises:
        LaddError: if it is missing or damaged, or makes tokens that the encoder does not know.
    """
    name = TOKENIZERS[encoder]
    tokenizer_config(folder, name)
    if encoder == T5:
        tokenizer = load_tokenizer(T5TokenizerFast, folder, name)
    else:
        tokenizer = load_tokenizer(CLIPTokenizer, folder, name)
        _check_merges(component(folder, name), tokenizer)
    _check_vocabulary(folder, encoder, max(tokenizer.get_vocab().values()))
    return tokenizer


def _check_merges(path: Path, tokenizer: CLIPTokenizer) -> None:
    """CLIP knows the bytes, and what merging makes of them: where one file lacks a part, words are cut otherwise.

    Raises:
        LaddError: naming the first piece that only one of the two files knows, or that has no number.
    """
    vocabulary = tokenizer.encoder
    check_values(path / "vocab.json", vocabulary, dict.fromkeys(vocabulary, whole_number(0)))
    letters = set(tokenizer.byte_encoder.values())
    made = letters.union(letter + _END for letter in letters).union(map("".join, tokenizer.bpe_ranks))
    if lost := sorted(made - vocabulary.keys()):
        raise LaddError(f"{path / 'vocab.json'} has no {lost[0]}, which merges.txt makes: {_AGAIN}")
    if lost := sorted(vocabulary.keys() - made.union(tokenizer.all_special_tokens)):
        raise LaddError(f"{path / 'merges.txt'} does not make {lost[0]}, which vocab.json has: {_AGAIN}")


def _check_vocabulary(folder: str | Path, encoder: str, largest: int) -> None:
    if largest >= (known := text_config(folder, encoder)["vocab_size"]):
        raise LaddError(
            f"{folder}: the tokenizer of {encoder} makes tokens up to {largest}, but the encoder knows {known}, "
            "from 0 on: they are not of one model"
        )


_AGAIN = "download both again"
