"""Folders that one command writes whole, and that replace only what the same command wrote before.

A folder is written under a hidden name beside its place, put on disk and renamed. The earlier one steps aside just
before and is removed just after. Killed at any moment, one of the two is whole, and the next call puts it back if it
must and clears away what else was left. Every such folder holds a list of its files: only a folder with that list,
and with nothing beside it, is ever replaced.
"""

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel
from safetensors import SafetensorError

from ladd_dist.errors import LaddError
from ladd_dist.files.disk import sync
from ladd_dist.log import warn

MARKER = ".ladd_dist.json"
_NEW, _OLD = "new", "old"
_ELSEWHERE = "choose another with --out"


class _Marker(BaseModel):
    kind: str
    files: list[str]
    """Relative paths; none while the folder is being written."""


def check_replaceable(folder: Path, kind: str, overwrite: bool = True, elsewhere: str = _ELSEWHERE) -> None:
    """See that `replacing` may write there; needs the folder's `real_path`. Puts back what a kill has left aside.

    Args:
        elsewhere: how the caller's user names another place.

    Raises:
        LaddError: if something else than an earlier folder of this kind is there, or inside it, or around it; or if
            there is one and ``overwrite`` is not set.
    """
    _put_back(folder, kind)
    if around := [parent for parent in folder.parents if _listed(parent, kind)]:
        raise LaddError(f"{kind} folder {folder} would lie inside {around[0]}, which is replaced whole: {elsewhere}")
    if os.path.lexists(folder):
        _check_earlier(folder, kind, overwrite, elsewhere)
    nearest = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise LaddError(f"{kind} folder {folder} cannot be made in {nearest}: {elsewhere}")


def _check_earlier(folder: Path, kind: str, overwrite: bool, elsewhere: str) -> None:
    files, move = _listed(folder, kind), f"move it away, or {elsewhere}"
    if not files:
        raise LaddError(f"{folder} exists and holds no {kind} of an earlier call (see {MARKER}): {move}")
    if not overwrite:
        raise LaddError(f"{kind} folder {folder} exists: pass --overwrite to replace it, or {elsewhere}")
    if strangers := sorted(set(_files(folder)) - set(files)):
        raise LaddError(f"{kind} folder {folder} holds {strangers[0]}, which was not written with it: {move}")


@contextmanager
def replacing(folder: Path, kind: str, overwrite: bool = True, elsewhere: str = _ELSEWHERE) -> Iterator[Path]:
    """A new folder to write into, which takes its place when the block has ended well; else nothing has changed.

    Args:
        folder: its place, a `real_path`.
        kind: what it is: the command's own word for it.
        elsewhere: how the caller's user names another place.

    Raises:
        LaddError: as `check_replaceable`, or if it cannot be written.
    """
    check_replaceable(folder, kind, overwrite, elsewhere)
    _clear(folder)
    missing = [parent for parent in folder.parents if not parent.exists()]
    temporary = _sibling(folder, _NEW)
    try:
        temporary.mkdir(parents=True)
        with (temporary / MARKER).open("w", encoding="utf-8") as marker:
            with suppress(OSError):  # where the file system knows no locks, what a kill leaves is never cleared away
                fcntl.flock(marker, fcntl.LOCK_EX)
            yield temporary
            _seal(temporary, kind, marker)
            check_replaceable(folder, kind, overwrite, elsewhere)  # another call may have been faster
            _put(temporary, folder)
    except BaseException as error:
        _undo(temporary, missing)
        if isinstance(error, OSError | SafetensorError):
            reason = " ".join(str(error).split())
            raise LaddError(
                f"{kind} folder {folder} could not be written ({reason}): mend that, or {elsewhere}"
            ) from None
        raise


def _listed(folder: Path, kind: str) -> list[str] | None:
    try:
        marker = _Marker.model_validate_json((folder / MARKER).read_bytes(), strict=True)
    except (OSError, ValueError):
        return None
    return marker.files if marker.kind == kind else None


def _files(folder: Path) -> list[str]:
    """Relative paths of all that is no folder, but for the marker."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [name for path in found if (name := str(path.relative_to(folder))) != MARKER]


def _seal(folder: Path, kind: str, marker: TextIO) -> None:
    """Write the list into the locked file, give all files the mode of a new one, and put everything on disk."""
    files = _files(folder)
    mode = stat.S_IMODE(os.fstat(marker.fileno()).st_mode)
    for name in files:
        (folder / name).chmod(mode)  # safetensors lets nobody but the owner read what it writes
    marker.seek(0)
    marker.write(_Marker(kind=kind, files=files).model_dump_json(indent=1) + "\n")
    marker.truncate()
    marker.flush()
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _put(temporary: Path, folder: Path) -> None:
    aside = _sibling(folder, _OLD)
    if replaces := folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if replaces:
            aside.rename(folder)
        raise
    sync(folder.parent)
    if replaces:
        try:
            _remove(aside)
        except OSError as error:
            warn(f"{aside}, which {folder} has replaced, could not be removed ({error}): the next call tries again")


def _put_back(folder: Path, kind: str) -> None:
    """Rename an earlier folder back that `_put` had moved aside when it was killed, if all its files are there."""
    for aside in _siblings(folder, _OLD):
        files = _listed(aside, kind)
        if not folder.exists() and files and all((aside / name).exists() for name in files):
            with suppress(FileNotFoundError):  # another rank did it
                aside.rename(folder)


def _clear(folder: Path) -> None:
    """Remove what calls that were killed have left: it has a marker that no living writer holds, or is empty."""
    for left in [*_siblings(folder, _NEW), *(_siblings(folder, _OLD) if folder.exists() else [])]:
        try:
            with (left / MARKER).open("r+", encoding="utf-8") as marker:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
        except OSError:
            with suppress(OSError):
                left.rmdir()


def _undo(temporary: Path, missing: list[Path]) -> None:
    with suppress(OSError):
        _remove(temporary)
    with suppress(OSError):
        for parent in missing:
            parent.rmdir()


def _remove(folder: Path) -> None:
    """The marker last: what a kill leaves must still be known as ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()


def _sibling(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.{state}-{secrets.token_hex(4)}")


def _siblings(folder: Path, state: str) -> list[Path]:
    """All that `_sibling` may have named."""
    start, digits = f".{folder.name}.{state}-", set("0123456789abcdef")
    try:
        names = os.listdir(folder.parent)
    except OSError:
        return []
    return [folder.with_name(n) for n in sorted(names) if n.startswith(start) and set(n[len(start) :]) <= digits]
