"""Single files of a download: whether one is there, and whole."""

import json
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


def check_safetensors(file: Path) -> None:
    """Hold a file's size against its header.

    Raises:
        LaddError: if it is not a whole safetensors file.
    """
    try:
        with safe_open(whole(file), "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise LaddError(f"{file} is not a whole safetensors file ({error}): download it again") from None
