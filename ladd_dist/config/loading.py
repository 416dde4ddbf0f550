"""A YAML file and overrides to a `Config`, with one line for what is wrong with them."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ladd_dist.config.schema import Config
from ladd_dist.config.yaml import override, read_yaml
from ladd_dist.errors import LaddError


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML) and validate.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    tree = read_yaml(Path(path))
    for setting in overrides or []:
        override(tree, setting)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise LaddError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first problem in one line, with a suggestion where a key is mistyped."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_suggest(first['loc'])}"
    if first["type"] == "missing":
        return f"missing key '{key}': add it to the file or pass {key}=VALUE"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{key or 'config'}: {message[0].lower()}{message[1:]}{got}"


def _suggest(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f": did you mean '{close[0]}'?" if close else f": known keys here are {', '.join(known)}"
