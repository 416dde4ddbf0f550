"""Single files of a download: whether one is there, and whole, and what a library makes of a bad one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ladd_dist.errors import LaddError

_LFS_POINTER = b"version https://git-lfs"


def whole(path: Path) -> Path:
    """``path``, if it is a file with its content.

    Raises:
        LaddError: if it is missing, empty, a link to nothing or a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        reason = "links to a file that is not there" if path.is_symlink() and not path.exists() else error.strerror
        raise LaddError(f"{path} cannot be read ({reason}): download it again") from None
    if not start:
        raise LaddError(f"{path} is empty: download it again")
    if start == _LFS_POINTER:
        raise LaddError(f"{path} is a Git LFS pointer, not the file: run git lfs pull there, or download it again")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        LaddError: if it is missing or holds anything else.
    """
    try:
        tree = json.loads(whole(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LaddError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(tree, dict):
        raise LaddError(f"{path} holds no JSON object: download it again")
    return tree


def tensor_names(file: Path) -> set[str]:
    """The names in a safetensors file, whose size is held against its header.

    Raises:
        LaddError: if it is not a whole safetensors file.
    """
    try:
        with safe_open(whole(file), "pt") as header:
            return set(header.keys())
    except (OSError, SafetensorError) as error:
        raise LaddError(f"{file} is not a whole safetensors file ({error}): download it again") from None


@contextmanager
def in_one_line(problem: str) -> Iterator[None]:
    """Say in one line what a library makes of a bad file.

    Args:
        problem: file or folder, and what cannot be done with it.

    Raises:
        LaddError: for whatever is raised inside.
    """
    try:
        yield
    except LaddError:
        raise
    except Exception as error:  # what a damaged file leads to is anything: tokenizers raise no class of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LaddError(f"{problem} ({reason}): download it again") from None
