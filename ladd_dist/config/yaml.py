"""YAML that means what it says: version 1.2's core schema, in which every key stands once; and dotted overrides.

PyYAML reads version 1.1, where ``off`` is false, ``010`` is 8, ``1:30`` is 90 and ``1e-6`` is text, and lets the last
of two equal keys win. Here only ``true`` and ``false`` are booleans, and what is no number of 1.2 is text.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ladd_dist.errors import LaddError

_TAG = "tag:yaml.org,2002:"
_Scalar = Callable[[str], Any]


def _str(text: str) -> str:
    text.encode()  # an escaped half of a surrogate pair is no character
    return text


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _int(text: str) -> int:
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def _float(text: str) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


# Type, how it is written (https://yaml.org/spec/1.2.2/#1032-tag-resolution), first characters, what it means.
_CORE: tuple[tuple[str, str, list[str], _Scalar], ...] = (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""], lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"], _bool),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"], _int),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
        _float,
    ),
)


class _Loader(yaml.SafeLoader):
    """The core schema and the merge key ``<<``; a key that is given twice is an error."""

    yaml_implicit_resolvers = {"<": [(f"{_TAG}merge", re.compile("^<<$"))]}  # noqa: RUF012 - as PyYAML declares it
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (f"{_TAG}map", f"{_TAG}seq", None)
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key.value}' is given in line {lines[key.value]} and again in line {line}, keep one"
                )
            lines[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader`, or YAML 1.1, would take for something else."""


def _constructor(kind: str, convert: _Scalar) -> Callable[[_Loader, Any], Any]:
    def construct(loader: _Loader, node: Any) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            return convert(text)
        except (ValueError, KeyError):  # an explicit tag, or more digits than Python reads
            raise yaml.MarkedYAMLError(problem=f"'{text:.40}' cannot be read as {kind}") from None

    return construct


_Loader.add_constructor(f"{_TAG}str", _constructor("text", _str))
for _kind, _pattern, _first, _convert in _CORE:
    _Loader.add_constructor(f"{_TAG}{_kind}", _constructor(_kind, _convert))
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path, kind: str = "config", example: str = "configs/tiny_cpu.yaml") -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        kind: what the file is, and the flag that names it.
        example: a file of that kind.

    Raises:
        LaddError: naming the file and what is wrong with it.
    """
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaddError(f"{kind} file {path} cannot be read ({error.strerror}): pass --{kind} FILE") from None
    except UnicodeDecodeError:
        raise LaddError(f"{kind} file {path} is not UTF-8 text: pass --{kind} FILE") from None
    except yaml.YAMLError as error:
        raise LaddError(f"{kind} file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise LaddError(f"{kind} file {path} must hold a mapping of sections, see {example}")
    return tree


def override(tree: dict[str, Any], setting: str) -> None:
    """Apply ``key.sub=value``, where the value is YAML, in place; of two for one key the later wins.

    Raises:
        LaddError: naming the override and what is wrong with it.
    """
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise LaddError(f"override '{setting}' is not of the form key.sub=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        section = node.get(parent, {})
        if not isinstance(section, dict):
            raise LaddError(f"override '{setting}': '{parent}' is a value, not a section")
        node[parent] = dict(section)  # a copy: an alias may stand for the same section
        node = node[parent]
    try:
        node[leaf] = _parse(text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "not printable"
        raise LaddError(f"override '{setting}': '{text}' is not a YAML value ({reason})") from None


def write_yaml(path: Path, tree: dict[str, Any]) -> None:
    """Write what `read_yaml` reads back equal."""
    path.write_text(yaml.dump(tree, Dumper=_Dumper, sort_keys=False), encoding="utf-8")


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deeply") from None
