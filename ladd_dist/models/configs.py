"""Configs of single networks with every key, of checked values: what a file leaves out has its class's default."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError
from ladd_dist.models.files import in_one_line, read_json
from ladd_dist.models.values import NAMES, Table, check_values

_UNSET = "_use_default_values"
"""Keys that were never set when diffusers saved a config: they have the default of the class that reads it."""


def diffusers_config(kind: type, path: Path, table: Table) -> dict[str, Any]:
    """The config of a network of class ``kind`` in diffusers, as diffusers reads it.

    Args:
        path: the network's folder.
        table: what the values may be.

    Raises:
        LaddError: if the file is damaged, is of another class, or has a value that cannot be used.
    """
    file, config = _read(path)
    if (found := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise LaddError(f"{path} holds a {found}: only {kind.__name__} is supported")
    check_values(file, config, {_UNSET: NAMES})
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    unset = config.pop(_UNSET, [])
    config = defaults | {key: value for key, value in config.items() if key not in unset}
    check_values(file, config, table)
    return config


def transformers_config(kind: Any, path: Path, types: Sequence[str], table: Table) -> dict[str, Any]:
    """The config of class ``kind`` in transformers, as transformers reads it.

    Args:
        path: the network's folder.
        types: values of ``model_type`` that hold such a config, in itself or in a section.
        table: what the values may be.

    Raises:
        LaddError: if the file is damaged, is of another type, or has a value that cannot be used.
    """
    file, tree = _read(path)
    if (found := tree.get("model_type", types[0])) not in types:
        raise LaddError(f"{path} holds a model of type {found}: only {types[0]} is supported there")
    with in_one_line(f"{file} makes no {kind.__name__}"):
        config: dict[str, Any] = kind.from_pretrained(path).to_dict()
    check_values(file, config, table)
    return config


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / "config.json"
    config = read_json(file)
    if config.get("quantization_config") is not None:
        raise LaddError(f"{file} has a quantization_config: download the network in full precision, 16 or 32 bits")
    return file, config
