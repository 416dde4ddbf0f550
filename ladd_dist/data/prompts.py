"""Prompt lists, and which bucket each of their pictures gets."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ladd_dist.config.loading import suggest
from ladd_dist.data.buckets import Bucket
from ladd_dist.errors import LaddError

_LABELS = ("category", "challenge")
"""What PartiPrompts say of a prompt, for whoever reads the file."""
_KEYS = ("prompt", "bucket", *_LABELS)
_EXPECTED = 'expected {"prompt": "...", "bucket": "HxW"}'
_NEWLINE = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class PromptEntry:
    """One picture of a prompt list. ``id`` is its number in the whole list and seeds its noise."""

    id: int
    prompt: str
    bucket: Bucket


def read_prompts(path: str | Path, buckets: list[str], images_per_prompt: int = 1) -> list[PromptEntry]:
    """Read a prompt file and number its pictures.

    ``.jsonl`` lines are objects with ``prompt`` and optionally ``bucket``, and ``category`` and ``challenge``, which
    draw nothing; ``.txt`` lines are prompts, less the white space around them. Files are UTF-8, lines end in LF,
    CRLF or CR, and blank ones are skipped. A prompt without a bucket takes the next of ``buckets`` in turn, so every
    aspect ratio gets its share.

    Raises:
        LaddError: naming the file and line that cannot be used.
    """
    path = Path(path)
    data, parse = _data(path), _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise LaddError(
            f"prompt file {path} ends in '{path.suffix}': name it .txt if it holds one prompt per line, or .jsonl if "
            'each line is {"prompt": "...", "bucket": "HxW"}'
        )
    return _entries(str(path), data, parse, buckets, images_per_prompt)


def prompts_of(stream: BinaryIO, buckets: list[str]) -> list[PromptEntry]:
    """Prompts from a stream, such as standard input: to its end, as of a ``.txt`` file.

    Raises:
        LaddError: naming the line that cannot be used.
    """
    return _entries("standard input", stream.read(), _parse_text, buckets, 1)


def _entries(
    path: str, data: bytes, parse: "_Parse", buckets: list[str], images_per_prompt: int
) -> list[PromptEntry]:
    entries: list[PromptEntry] = []
    for number, line in enumerate(_lines(path, data), 1):
        if not line.strip():
            continue
        try:
            prompt, name = parse(line)
        except UnusableError as problem:
            raise LaddError(f"{path}:{number}: {problem}") from None
        if name is not None and name not in buckets:
            raise LaddError(f"{path}:{number}: bucket {name!r} is not one of the configured {', '.join(buckets)}")
        for _ in range(images_per_prompt):
            chosen = name or buckets[len(entries) % len(buckets)]
            entries.append(PromptEntry(len(entries), prompt, Bucket.parse(chosen)))
    if not entries:
        raise LaddError(f"prompt file {path} holds no prompts")
    return entries


def _data(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LaddError(f"prompt file {path} cannot be read ({error.strerror})") from None


def _lines(path: str, data: bytes) -> list[str]:
    """Lines as editors show them. `str.splitlines` would also cut at U+2028 and its like, which text may hold."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = len(_NEWLINE.findall(data[: error.start].decode("utf-8"))) + 1
        raise LaddError(f"{path}:{number}: not UTF-8 text: save the prompt file as UTF-8") from None
    # Byte-order marks stand at the start, and where files were joined.
    return [line.removeprefix("\ufeff") for line in _NEWLINE.split(text)]


class UnusableError(Exception):
    """What is wrong with a line, in words for a user."""


def _parse_text(line: str) -> tuple[str, None]:
    return checked(line.strip()), None


def _parse_json(line: str) -> tuple[str, str | None]:
    try:
        entry = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise UnusableError(_EXPECTED)
    for key in (key for key in entry if key not in _KEYS):
        raise UnusableError(f"unknown key {key!r}{suggest(key, _KEYS)}")
    if "prompt" not in entry:
        raise UnusableError(_EXPECTED)
    prompt, bucket = entry["prompt"], entry.get("bucket")
    if not isinstance(prompt, str) or not isinstance(bucket, str | None):
        raise UnusableError("'prompt' and 'bucket' must be text")
    return checked(prompt), bucket


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    for name in (name for name, count in counts.items() if count > 1):
        raise UnusableError(f"key {name!r} is given twice: keep one")
    return dict(pairs)


def checked(prompt: str) -> str:
    """A prompt, if it is one.

    Raises:
        UnusableError: if no text encoder could take it.
    """
    if "\0" in prompt:
        raise UnusableError("the prompt holds a NUL character: save the prompt file as UTF-8 text")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UnusableError("the prompt holds half of a surrogate pair, which is no character") from None
    return prompt


_Parse = Callable[[str], tuple[str, str | None]]
_PARSERS: dict[str, _Parse] = {".txt": _parse_text, ".jsonl": _parse_json}


def first_of_each_bucket(entries: list[PromptEntry], count: int) -> list[list[PromptEntry]]:
    """Up to ``count`` entries of every bucket, buckets in order of first appearance."""
    chosen: dict[str, list[PromptEntry]] = {}
    for entry in entries:
        rows = chosen.setdefault(entry.bucket.name, [])
        if len(rows) < count:
            rows.append(entry)
    return list(chosen.values())
