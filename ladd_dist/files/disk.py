"""Files and folders as the operating system has them."""

import os
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
