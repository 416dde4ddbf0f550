"""Files and folders as the operating system has them."""

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """Absolute, with ``~``, ``..`` and links followed."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def sync(path: Path) -> None:
    """Write a file or folder from the page cache to its disk, and drop it there, so that it is next read from disk.

    Raises:
        OSError: if it cannot be opened or written.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
