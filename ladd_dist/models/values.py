"""What values the keys of a config may have: a table per class, held before a library takes them as they are."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError


@dataclass(frozen=True)
class Values:
    """A kind of JSON value, and what to call it."""

    words: str
    allow: Callable[[Any], bool]

    def or_null(self) -> "Values":
        """Null as well."""
        return Values(f"{self.words}, or null", lambda value: value is None or self.allow(value))


Table = Mapping[str, Values]
"""Key -> what it may be, if it is there."""


def whole_number(least: int) -> Values:
    """A whole number from ``least`` on."""
    return Values(f"a whole number of {least} or more", lambda value: type(value) is int and value >= least)


def _is_number(value: Any) -> bool:
    """Neither a boolean nor, as Python's JSON knows them, NaN or infinity."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _all(allow: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(allow, value))


COUNT = whole_number(1)
NUMBER = Values("a finite number", _is_number)
POSITIVE = Values("a finite number above 0", lambda value: _is_number(value) and value > 0)
COUNTS = Values("a list of whole numbers of 1 or more", lambda value: bool(value) and _all(COUNT.allow)(value))
INDICES = Values("a list, which may be empty, of whole numbers of 0 or more", _all(whole_number(0).allow))
NAMES = Values("a list of names", _all(lambda name: isinstance(name, str)))


def check_values(file: Path, config: Mapping[str, Any], table: Table) -> None:
    """Hold a config against its class's table.

    Args:
        file: where the config was read from, for the error.

    Raises:
        LaddError: naming the first key whose value cannot be used.
    """
    for key, values in table.items():
        if key in config and not values.allow(config[key]):
            problem = f"{file} has {key}={json.dumps(config[key])}, which must be {values.words}"
            raise LaddError(f"{problem}: correct it, or download it again")
