"""What numbers, lists, paths and seeds may be, in configuration files and on the command line alike."""

import os
import re
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

MAX_SEED = 2**63 - 1
"""Noise is drawn from keys of signed 64-bit integers (`noise.generator`); torch and Streaming take larger ones."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

MAX_COUNT = 99_999_999
"""Of anything: the names of checkpoints and previews have eight digits."""
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PictureCount = Annotated[int, Field(gt=0, le=1_000_000)]
"""Of pictures that are listed in memory before the first is drawn."""
StepCount = Annotated[int, Field(gt=0, le=1000)]
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Channels of a layer; between two of such widths a convolution's size still fits 64 bits."""
WorkerCount = Annotated[int, Field(ge=0, le=1024)]

_LARGEST, _SMALLEST = 1e12, 1e-20
"""They enter arithmetic in fp32, whose numbers end at 3e38 and 1e-38: squares and products must have room, too."""
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
NonNegativeNumber = Annotated[float, Field(ge=0, le=_LARGEST)]
PositiveNumber = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]
Guidance = Annotated[float, Field(ge=1, le=_LARGEST)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""
Seconds = Annotated[float, Field(gt=0, le=1e9)]
SecondsOrZero = Annotated[float, Field(ge=0, le=1e9)]


def _each_once(values: list[Any]) -> list[Any]:
    for value in (value for value in values if values.count(value) > 1):
        raise ValueError(f"must have each entry once, but has {value} twice")
    return values


EachOnce = AfterValidator(_each_once)
"""For a list whose entries must differ."""


def _ascending(values: list[Any]) -> list[Any]:
    if any(now >= after for now, after in pairwise(values)):
        raise ValueError(f"must ascend, each once, not {values}")
    return values


Ascending = AfterValidator(_ascending)
"""For a list whose entries must rise."""


def _recomputation(value: object, check: ValidatorFunctionWrapHandler) -> object:
    try:
        return check(value)
    except ValidationError:
        close = get_close_matches(str(value), ("false", "true", "selective"), n=1)
        meant = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be false, true or selective{meant}") from None


Recomputation = Annotated[bool | Literal["selective"], WrapValidator(_recomputation)]
"""Of activations in the backward pass: none, all blocks', or but for what is dear to compute and cheap to keep."""


def form(pattern: str, what: str) -> AfterValidator:
    """For text that must match a pattern as a whole; ``what`` goes on where an error says "must be"."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return AfterValidator(check)


def expand_path(text: str) -> str:
    """A path with its leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ValueError: if no file can have this name: it is empty, of an unknown user, or cannot be encoded.
    """
    path = os.path.expanduser(text)
    if not path:
        raise ValueError("must be a path (. is the current folder)")
    if path.startswith("~"):
        raise ValueError("must be a path, and ~ a user's who has a home folder (./~ is a name that begins with ~)")
    try:
        path.encode()
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("must be a path that this locale can encode (start with PYTHONUTF8=1)") from None
    if "\0" in path:
        raise ValueError("must be a path, without NUL")
    return path


def clip_folder(name: str) -> str | None:
    """The folder of a judge or scorer ``clip:FOLDER``, as of `expand_path`; None for another name.

    Raises:
        ValueError: as of `expand_path`.
    """
    kind, _, folder = name.partition(":")
    return expand_path(folder) if kind == "clip" and folder else None


def expand_judge(name: str) -> str:
    """``clip:FOLDER`` with the folder as of `expand_path`; any other name as it is."""
    kind, separator, folder = name.partition(":")
    return f"{kind}:{expand_path(folder)}" if separator and folder else name


PathName = Annotated[str, AfterValidator(expand_path)]
JudgeName = Annotated[str, AfterValidator(expand_judge)]
