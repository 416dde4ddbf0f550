"""A YAML file and overrides to a `Config`, with one line for what is wrong with them."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import Tag, ValidationError

from ladd_dist.config.schema import Config
from ladd_dist.config.section import Section
from ladd_dist.config.yaml import override, read_yaml
from ladd_dist.errors import LaddError

_EXTENDS = "extends"
_Kind = TypeVar("_Kind", bound=Section)


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML) and validate.

    ``extends: FILE``, beside the sections, takes all that the file does not say from another one.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    tree = _read(Path(path))
    for setting in overrides or []:
        override(tree, setting)
    return validate(Config, tree, path)


def _read(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file says, over what it extends; ``below`` are the files that extend it."""
    tree = read_yaml(path)
    if _EXTENDS not in tree:
        return tree
    name, chain = tree.pop(_EXTENDS), (*below, path.resolve())
    if not isinstance(name, str):
        raise LaddError(f"{path}: {_EXTENDS} names a config file, not {name!r}")
    other = path.parent / name
    if not other.is_file():
        raise LaddError(
            f"{path}: {_EXTENDS}: {name}, but there is no {other}: write its path from this file's folder"
        )
    if other.resolve() in chain:
        raise LaddError(f"{path}: {_EXTENDS}: {name}, which extends this file in turn: remove one of the two")
    return _over(_read(other, chain), tree)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Sections of both, key by key, of which ``own`` wins; lists and values are replaced whole."""
    both = {key: _over(base[key], own[key]) for key in base.keys() & own if _are_sections(base[key], own[key])}
    return base | own | both


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def validate(kind: type[_Kind], tree: dict[str, Any], path: str | Path) -> _Kind:
    """What a file's mapping says as a section, such as the whole `Config`.

    Raises:
        LaddError: naming the file, key or value at fault and what would be right.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise LaddError(f"{path}: {_explain(error, kind)}") from None


def suggest(key: str, known: Iterable[str]) -> str:
    """What to say behind an unknown key: the known one that it resembles, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f": did you mean '{close[0]}'?" if close else f": known keys here are {', '.join(names)}"


def _explain(error: ValidationError, kind: type[Section]) -> str:
    """The first problem in one line, with a suggestion where a key is mistyped."""
    first = error.errors()[0]
    keys, section = _locate(first["loc"], kind)
    key = ".".join(name if name.isprintable() else repr(name)[1:-1] for name in keys)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{suggest(keys[-1], section.model_fields)}"
    if first["type"] == "missing":
        return f"missing key '{key}': add it to the file or pass {key}=VALUE"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    where = f"{key}: " if key else ""  # else it is about keys that it names itself
    return f"{where}{message[0].lower()}{message[1:]}{got}"


def _locate(location: tuple[int | str, ...], kind: type[Section]) -> tuple[list[str], Any]:
    """Keys as a user writes them, and the section that the last of them is in.

    Where a section is of one of several kinds, pydantic puts the kind's tag behind its key.
    """
    keys: list[str] = []
    section: Any = None
    inner: Any = kind
    kinds: dict[Any, Any] = {}
    for part in location:
        if part in kinds:
            inner, kinds = kinds[part], {}
            continue
        keys.append(str(part))
        section = inner
        field = getattr(section, "model_fields", {}).get(part)
        inner = _required(field.annotation) if field else _item(section)
        kinds = dict(_kinds(inner))
    return keys, section


def _required(annotation: Any) -> Any:
    """The section that an optional one (``Section | None``) is if it is there."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(annotation) else annotation


def _item(annotation: Any) -> Any:
    """What is in a list or, by its keys, in a mapping."""
    return get_args(annotation)[-1] if get_origin(annotation) in (list, dict) else None


def _kinds(annotation: Any) -> Iterator[tuple[str, Any]]:
    for kind in get_args(annotation):
        if get_origin(kind) is Annotated and isinstance(get_args(kind)[1], Tag):
            yield get_args(kind)[1].tag, get_args(kind)[0]
