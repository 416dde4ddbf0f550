"""Tables of preference pairs: ``.jsonl`` or ``.csv``, plain or in the columns of Pick-a-Pic.

A row has ``prompt`` (or ``caption``) and either ``chosen`` and ``rejected``, or ``jpg_0``, ``jpg_1`` and ``label_0``,
which is 1 if the first picture was preferred, 0 if the second was, and 0.5 for a tie, which makes no pair. Further
columns are not looked at. A picture is a path, relative to the table's folder, or a file's content as
``data:image/jpeg;base64,...``. Rows are counted from 1: lines of a ``.jsonl``, those behind the header of a ``.csv``.
"""

import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladd_dist.data.prompts import UnusableError, checked
from ladd_dist.errors import LaddError

Source = Path | bytes
"""A picture's file, or its content."""

_NAMED = 5
"""Rows that an error names."""


@dataclass(frozen=True)
class Pair:
    """One row. ``number`` is its own in the table, from 1."""

    number: int
    prompt: str
    chosen: Source
    rejected: Source


@dataclass(frozen=True)
class PairTable:
    """A table's pairs, how many of its rows are ties, and by number what is wrong with the others."""

    file: Path
    pairs: list[Pair]
    ties: int
    problems: dict[int, str]

    def refuse(self, problems: Mapping[int, str]) -> None:
        """Say in one line what is wrong with rows, if anything is.

        Args:
            problems: by number, beside the table's own.

        Raises:
            LaddError: naming the first of them, and how many there are.
        """
        if wrong := sorted((self.problems | dict(problems)).items()):
            named = ", ".join(str(number) for number, _ in wrong[:_NAMED]) + (", ..." if len(wrong) > _NAMED else "")
            rows = len(self.pairs) + self.ties + len(self.problems)
            first = f"row {wrong[0][0]}: {wrong[0][1]}"
            raise LaddError(
                f"{self.file}: {len(wrong)} of {rows} rows cannot be used: {named} ({first}): "
                "correct them, or take them out"
            )
        if not self.pairs:
            raise LaddError(f"{self.file} holds no pairs" + (f": all {self.ties} rows are ties" if self.ties else ""))


def read_pairs(path: Path) -> PairTable:
    """Read a table; pictures are not opened.

    Raises:
        LaddError: if it is no table of a kind that can be read.
    """
    pairs, ties, problems = [], 0, {}
    for number, values in _rows(path):
        try:
            pair = _pair(number, values, path.parent)
        except UnusableError as problem:
            problems[number] = str(problem)
            continue
        if pair is None:
            ties += 1
        else:
            pairs.append(pair)
    return PairTable(path, pairs, ties, problems)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        raise LaddError(f"{path}: .parquet is not read, write it as .jsonl with its pictures as files: docs/pairs.md")
    if kind not in _READERS:
        raise LaddError(f"{path} ends in '{path.suffix}': a table of pairs must be a .jsonl or a .csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LaddError(
            f"table {path} cannot be read ({error.strerror}): set --pairs to a .jsonl or a .csv"
        ) from None
    except UnicodeDecodeError:
        raise LaddError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    yield from _READERS[kind](text, path)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # a field may hold a picture
    try:
        yield from enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1)
    except csv.Error as error:
        raise LaddError(f"{path} is not CSV ({error}): save it as UTF-8 with commas and a header") from None


_READERS: dict[str, Callable[[str, Path], Iterator[tuple[int, Any]]]] = {".jsonl": _json_rows, ".csv": _csv_rows}


def _pair(number: int, values: Any, folder: Path) -> Pair | None:
    """One row; None of a tie."""
    if not isinstance(values, dict):
        raise UnusableError("it is not a JSON object")
    prompt = checked(_text(values, "caption" if "prompt" not in values else "prompt"))
    if "chosen" in values or "rejected" in values:
        chosen, rejected = (_source(values, key, folder) for key in ("chosen", "rejected"))
        return Pair(number, prompt, chosen, rejected)
    first, second = (_source(values, key, folder) for key in ("jpg_0", "jpg_1"))
    label = _label(values.get("label_0"))
    if label == 0.5:
        return None
    return Pair(number, prompt, *((first, second) if label else (second, first)))


def _text(values: dict[str, Any], key: str) -> str:
    text = values.get(key)
    if text is None or (isinstance(text, str) and not text.strip()):
        raise UnusableError(f"it has no {key}")
    if not isinstance(text, str):
        raise UnusableError(f"its {key} is not text")
    return text


def _label(value: Any) -> float:
    try:
        label = float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        label = None
    if label not in (0, 0.5, 1):
        raise UnusableError(f"its label_0 is {value!r:.20}, not 1, 0 or 0.5")
    return label


def _source(values: dict[str, Any], key: str, folder: Path) -> Source:
    text = _text(values, key)
    if not text.startswith("data:"):
        return folder / text
    _, comma, content = text.partition(";base64,")
    try:
        if not comma:
            raise ValueError
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise UnusableError(f"its {key} is not of the form data:image/jpeg;base64,...") from None
