"""The teacher families by class of the transformer. Whoever adds one calls `register` and touches nothing else."""

from importlib import import_module
from pathlib import Path

from ladd_dist.errors import LaddError
from ladd_dist.models.family import Family
from ladd_dist.models.files import read_json

_BUILTIN = {"SD3Transformer2DModel": "ladd_dist.models.sd3.family"}
"""Modules with a ``FAMILY``, imported on first use: they take the folder's files from a room that asks here."""

_FAMILIES: dict[str, Family] = {}


def register(class_name: str, family: Family) -> None:
    """Make folders whose ``transformer/config.json`` has this ``_class_name`` the family's.

    Raises:
        ValueError: if there is one of that name.
    """
    if class_name in known():
        raise ValueError(f"a family of {class_name} is registered already")
    _FAMILIES[class_name] = family


def known() -> list[str]:
    """The classes that have a family."""
    return [*_BUILTIN, *_FAMILIES]


def family_of(folder: str | Path) -> Family:
    """The family of a teacher's or a student's folder.

    Raises:
        LaddError: if the folder is not there, or its transformer is of no known class, listing those.
    """
    path = Path(folder)
    if not path.is_dir():
        raise LaddError(f"teacher folder {path} does not exist: set teacher.path to a diffusers folder")
    if not (path / "transformer").is_dir():
        raise LaddError(f"{path} has no transformer/: teacher.path must be a whole diffusers folder")
    file = path / "transformer" / "config.json"
    name = read_json(file).get("_class_name")
    if isinstance(name, str) and name in _BUILTIN:
        found: Family = import_module(_BUILTIN[name]).FAMILY
        return found
    if not isinstance(name, str) or name not in _FAMILIES:
        raise LaddError(f"{file} has _class_name={name}: set teacher.path to a folder of {', '.join(known())}")
    return _FAMILIES[name]
