"""Tables of pictures with their prompts, ``.jsonl`` or ``.csv``: one of each prompt, or preference pairs.

A row has ``prompt`` (or ``caption``) and ``picture``; of pairs either ``chosen`` and ``rejected``, or, as in
Pick-a-Pic, ``jpg_0``, ``jpg_1`` and ``label_0``, which is 1 if the first picture was preferred, 0 if the second, and
0.5 for a tie, which makes no pair. Further columns are not looked at. A picture is a path, relative to the table's
folder, or a file's content as ``data:image/jpeg;base64,...``. Rows are counted from 1: lines of a ``.jsonl``, those
behind the header of a ``.csv``.
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
_Values = dict[str, Any]

_NAMED = 5
"""Rows that an error names."""


@dataclass(frozen=True)
class Row:
    """One row. ``number`` is its own in the table, from 1; pictures are by column, of a pair ``chosen`` first."""

    number: int
    prompt: str
    pictures: dict[str, Source]


@dataclass(frozen=True)
class PictureTable:
    """A table's rows, how many more are ties, and by number what is wrong with the others.

    Attributes:
        unit: what a row is, ``picture`` or ``pair``.
    """

    file: Path
    unit: str
    rows: list[Row]
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
            rows = len(self.rows) + self.ties + len(self.problems)
            first = f"row {wrong[0][0]}: {wrong[0][1]}"
            raise LaddError(
                f"{self.file}: {len(wrong)} of {rows} rows cannot be used: {named} ({first}): "
                "correct them, or take them out"
            )
        if not self.rows:
            ties = f": all {self.ties} rows are ties" if self.ties else ""
            raise LaddError(f"{self.file} holds no {self.unit}s{ties}")


def read_pictures(path: Path) -> PictureTable:
    """Read a table of single pictures, which are not opened.

    Raises:
        LaddError: if it is no table of a kind that can be read.
    """
    return _read(path, "picture", _picture)


def read_pairs(path: Path) -> PictureTable:
    """Read a table of pairs; pictures are not opened.

    Raises:
        LaddError: if it is no table of a kind that can be read.
    """
    return _read(path, "pair", _pair)


def _read(path: Path, unit: str, pictures: Callable[[_Values, Path], dict[str, Source] | None]) -> PictureTable:
    rows, ties, problems = [], 0, {}
    for number, values in _rows(path):
        try:
            if not isinstance(values, dict):
                raise UnusableError("it is not a JSON object")
            prompt = checked(_text(values, "caption" if "prompt" not in values else "prompt"))
            found = pictures(values, path.parent)
        except UnusableError as problem:
            problems[number] = str(problem)
            continue
        if found is None:
            ties += 1
        else:
            rows.append(Row(number, prompt, found))
    return PictureTable(path, unit, rows, ties, problems)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        raise LaddError(f"{path}: .parquet is not read, write it as .jsonl with its pictures as files: docs/pairs.md")
    if kind not in _READERS:
        raise LaddError(f"{path} ends in '{path.suffix}': a table of pictures must be a .jsonl or a .csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LaddError(f"table {path} cannot be read ({error.strerror}): name a .jsonl or a .csv") from None
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


def _picture(values: _Values, folder: Path) -> dict[str, Source]:
    return {"picture": _source(values, "picture", folder)}


def _pair(values: _Values, folder: Path) -> dict[str, Source] | None:
    """None of a tie."""
    if "chosen" in values or "rejected" in values:
        return {key: _source(values, key, folder) for key in ("chosen", "rejected")}
    first, second = (_source(values, key, folder) for key in ("jpg_0", "jpg_1"))
    label = _label(values.get("label_0"))
    if label == 0.5:
        return None
    return {"chosen": first, "rejected": second} if label else {"chosen": second, "rejected": first}


def _text(values: _Values, key: str) -> str:
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


def _source(values: _Values, key: str, folder: Path) -> Source:
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
