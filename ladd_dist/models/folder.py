"""A diffusers folder on disk: which components and files its family's pipeline reads.

Every loader opens a component through here, so that a download that is not whole is said the same way everywhere.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ladd_dist.errors import LaddError
from ladd_dist.models.files import check_safetensors, read_json, whole
from ladd_dist.models.registry import family_of

INDEX = "model_index.json"
_DIFFUSERS = "diffusion_pytorch_model.safetensors"
_TOKENIZER_FILES = (".json", ".txt", ".model")
_ABSENT = [None, None]
"""As diffusers writes it."""


def components(folder: str | Path) -> list[str]:
    """The components that the pipeline reads when it draws: named by the index, and there.

    Raises:
        LaddError: if the folder is of no known family.
    """
    layout = family_of(folder).layout
    found = [name for name in layout.configs if os.path.lexists(Path(folder) / name) and _is_named(folder, name)]
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

    Of twins in another precision, pickles and other formats beside them none is read.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path, layout = component(folder, name), family_of(folder).layout
    stem = layout.networks[name]
    single, index = path / f"{stem}.safetensors", path / f"{stem}.safetensors.index.json"
    if _is_sharded(single, index):
        files = _shards(index)
    elif os.path.lexists(single):
        files = [single]
    else:
        raise _without_weights(path, stem, name in layout.optional)
    for file in files:
        check_safetensors(file)
    return files


def component_files(folder: str | Path, name: str) -> list[Path]:
    """Every file of a component that the pipeline reads, each of them whole.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path, layout = component(folder, name), family_of(folder).layout
    if name not in layout.networks:
        return [whole(file) for file in sorted(path.iterdir()) if _is_plain(file)]
    single, index = (path / f"{layout.networks[name]}.safetensors{end}" for end in ("", ".index.json"))
    return [path / layout.configs[name], *[index] * _is_sharded(single, index), *weight_files(folder, name)]


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
    index = pipeline_index(folder)
    return not index or index.get(name, _ABSENT) not in (None, _ABSENT)


def _is_plain(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix in _TOKENIZER_FILES


def _is_sharded(single: Path, index: Path) -> bool:
    """Given both, diffusers takes the shards and transformers the single file."""
    return os.path.lexists(index) and (single.name == _DIFFUSERS or not os.path.lexists(single))


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise LaddError(f"{index} is not a safetensors index (no weight_map): download the teacher again")
    return [index.parent / name for name in sorted(set(shards.values()))]


def _without_weights(path: Path, stem: str, optional: bool) -> LaddError:
    """What to do about a component that has its weights as a variant alone, or in another format."""
    variant = re.compile(rf"({stem})\.\w+(\.safetensors(?:\.index\.json)?)|({stem}\.safetensors\.index)\.\w+(\.json)")
    for file in sorted(path.iterdir()):
        if found := variant.fullmatch(file.name):
            name = "".join(part for part in found.groups() if part)
            return LaddError(
                f"{path} has its weights as a variant alone: to use them, mv {file.name} {name} there, "
                "and alike in each component that has no others"
            )
    remedy = "weights must be safetensors, download those of the teacher"
    if optional:
        remedy += f", or remove {path.name}/ to draw without it"
    return LaddError(f"{path} has no {stem}.safetensors: {remedy}")
