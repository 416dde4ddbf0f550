"""A diffusers SD3 folder on disk: which components and files its pipeline reads.

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

INDEX = "model_index.json"
CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
T5_PARTS = (T5, "tokenizer_3")

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
_WEIGHTS = {"transformer": _DIFFUSERS, "vae": _DIFFUSERS} | dict.fromkeys((*CLIPS, T5), _TRANSFORMERS)
_CONFIGS = {
    **dict.fromkeys(_WEIGHTS, "config.json"),
    "scheduler": "scheduler_config.json",
    **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), "tokenizer_config.json"),
}
_TOKENIZER_FILES = (".json", ".txt", ".model")
_ABSENT = [None, None]
"""As diffusers writes it."""


def components(folder: str | Path) -> list[str]:
    """The components that the SD3 pipeline reads when it draws from text: named by the index, and there.

    T5 may be absent, and its tokenizer is read with it alone.
    """
    found = [name for name in _CONFIGS if os.path.lexists(Path(folder) / name) and _is_named(folder, name)]
    return found if T5 in found else [name for name in found if name not in T5_PARTS]


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
    path = Path(folder)
    if not path.is_dir():
        raise LaddError(f"teacher folder {path} does not exist: set teacher.path to a diffusers SD3 folder")
    if name not in components(folder):
        missing = f"{path} has no {name}/" if _is_named(folder, name) else f"{path / INDEX} has null for {name}"
        raise LaddError(f"{missing}: teacher.path must be a whole diffusers SD3 folder, only T5 may be absent")
    read_json(path / name / _CONFIGS[name])
    return path / name


def weight_files(folder: str | Path, name: str) -> list[Path]:
    """The safetensors files that a component is loaded from, each of them whole.

    Of twins in another precision, pickles and other formats beside them none is read.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path, stem = component(folder, name), _WEIGHTS[name]
    single, index = path / f"{stem}.safetensors", path / f"{stem}.safetensors.index.json"
    if _is_sharded(single, index):
        files = _shards(index)
    elif os.path.lexists(single):
        files = [single]
    else:
        raise _without_weights(path, stem)
    for file in files:
        check_safetensors(file)
    return files


def component_files(folder: str | Path, name: str) -> list[Path]:
    """Every file of a component that the pipeline reads, each of them whole.

    Raises:
        LaddError: naming the file that is missing or not whole.
    """
    path = component(folder, name)
    if name not in _WEIGHTS:
        return [whole(file) for file in sorted(path.iterdir()) if _is_plain(file)]
    single, index = (path / f"{_WEIGHTS[name]}.safetensors{end}" for end in ("", ".index.json"))
    return [path / _CONFIGS[name], *[index] * _is_sharded(single, index), *weight_files(folder, name)]


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
    index |= dict.fromkeys(sorted(named.union(T5_PARTS).difference(names)), _ABSENT)
    (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _is_named(folder: str | Path, name: str) -> bool:
    """Whether the index, if there is one, has a class for a component: absent ones are null in it."""
    index = pipeline_index(folder)
    return not index or index.get(name, _ABSENT) not in (None, _ABSENT)


def _is_plain(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix in _TOKENIZER_FILES


def _is_sharded(single: Path, index: Path) -> bool:
    """Given both, diffusers takes the shards and transformers the single file."""
    return os.path.lexists(index) and (single.stem == _DIFFUSERS or not os.path.lexists(single))


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise LaddError(f"{index} is not a safetensors index (no weight_map): download the teacher again")
    return [index.parent / name for name in sorted(set(shards.values()))]


def _without_weights(path: Path, stem: str) -> LaddError:
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
    if path.name == T5:
        remedy += f", or remove {path.name}/ to draw without T5"
    return LaddError(f"{path} has no {stem}.safetensors: {remedy}")
