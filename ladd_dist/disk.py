"""Files and folders as the operating system has them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """Absolute, with ``~``, ``..`` and links followed."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def sync(path: Path) -> None:
    """Have the operating system put a file or folder on disk, and read it from there when it is read next."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def copy_tree(source: Path, target: Path, ignore: Callable[[str, list[str]], set[str]]) -> None:
    """Copy contents alone, links as what they point to: a read-only source must not make a read-only copy.

    Args:
        target: made if it is not there.
        ignore: as `shutil.copytree` takes it.
    """
    target.mkdir(exist_ok=True)
    names = sorted(os.listdir(source))
    for name in sorted(set(names) - ignore(str(source), names)):
        if (source / name).is_dir():
            copy_tree(source / name, target / name, ignore)
        else:
            shutil.copyfile(source / name, target / name)
