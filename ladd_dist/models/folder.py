"""A diffusers folder on disk: which components and files its family's pipeline reads.

Every loader opens a component through here, so that a download that is not whole is said the same way everywhere.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError
from ladd_dist.models import shards
from ladd_dist.models.files import read_json, whole
from ladd_dist.models.registry import family_of

INDEX = "model_index.json"
_TOKENIZER_FILES = (".json", ".txt", ".model")
_ABSENT = [None, None]
"""As diffusers writes it."""


def components(folder: str | Path) -> list[str]:
    """The components that the pipeline reads when it draws: named by the index, and there.

    Raises:
        LaddError: if the folder is of no known family, or its index is damaged.
    """
    layout = family_of(folder).layout
    found = [name for name in layout.configs if _is_named(folder, name) and os.path.lexists(Path(folder) / name)]
    unread = {part for name, parts in layout.optional.items() if name not in found for part in parts}
    return [name for name in found if name not in unread]


def networks(folder: str | Path) -> list[str]:
    """The components with weights that a folder of this family may have."""
    return list(family_of(folder).layout.networks)


def absent_parts(folder: str | Path) -> list[str]:
    """The optional components that the pipeline does not read."""
    optional, there = family_of(folder).layout.optional, components(folder)
    return [part for parts in optional.values() for part in parts if part not in there]


def check_files(folder: str | Path) -> None:
    """Hold a teacher's folder against what its pipeline reads.

    Raises:
        LaddError: naming the first component or file that is missing or not whole.
    """
    layout = family_of(folder).layout
    optional = {part for parts in layout.optional.values() for part in parts}
    for name in layout.configs:
        if name not in optional:
            component(folder, name)
    read_json(Path(folder) / INDEX)
    for name in components(folder):
        component_files(folder, name)
        for part in layout.optional.get(name, ()):
            component(folder, part)


def pipeline_index(folder: str | Path) -> dict[str, Any]:
    """The content of ``model_index.json``; empty if there is none, as in a student's folder.

    Raises:
        LaddError: if it is damaged.
    """
    path = Path(folder) / INDEX
    return read_json(path) if os.path.lexists(path) else {}


def component(folder: str | Path, name: str) -> Path:
    """Path of one component, whose config can be read.

    Raises:
        LaddError: if the folder or the component is missing, or its config is damaged.
    """
    path, layout = Path(folder), family_of(folder).layout
    if name not in components(folder):
        missing = f"{path} has no {name}/" if _is_named(folder, name) else f"{path / INDEX} has null for {name}"
        only = f", only {', '.join(layout.optional)} may be absent" if layout.optional else ""
        raise LaddError(f"{missing}: teacher.path must be a whole diffusers folder{only}")
    read_json(path / name / layout.configs[name])
    return path / name


def weight_files(folder: str | Path, name: str) -> list[Path]:
    """The safetensors files that a component is loaded from, each of them whole.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path, layout = component(folder, name), family_of(folder).layout
    way_out = f", or remove {name}/ to draw without it" if name in layout.optional else ""
    return shards.weight_files(path, layout.networks[name], way_out)


def component_files(folder: str | Path, name: str) -> list[Path]:
    """Every file of a component that the pipeline reads, each of them whole.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path, layout = component(folder, name), family_of(folder).layout
    if name not in layout.networks:
        return [whole(file) for file in sorted(path.iterdir()) if _is_plain(file)]
    index = shards.index_files(path, layout.networks[name])
    return [path / layout.configs[name], *index, *weight_files(folder, name)]


def copy_pipeline(folder: Path, to: Path, without: str) -> None:
    """Copy the files that the pipeline reads, but one component's; the index says null for what is absent.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    names = components(folder)
    for name in names:
        (to / name).mkdir(parents=True)
        for file in component_files(folder, name) if name != without else ():
            shutil.copyfile(file, to / name / file.name)
    index = pipeline_index(folder)
    named = {name for name, entry in index.items() if isinstance(entry, list | None)}
    index |= dict.fromkeys(sorted(named.union(absent_parts(folder)).difference(names)), _ABSENT)
    (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _is_named(folder: str | Path, name: str) -> bool:
    """Whether the index, if there is one, has a class for a component: absent ones are null in it."""
    index, file = pipeline_index(folder), Path(folder) / INDEX
    entry = index.get(name)
    if entry not in (None, _ABSENT) and not _is_class(entry):
        found = f"{name}={json.dumps(entry)}"
        raise LaddError(f"{file} has {found}, which must be a library and a class, or null: download it again")
    return not index or _is_class(entry)


def _is_class(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _is_plain(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix in _TOKENIZER_FILES
