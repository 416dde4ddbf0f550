"""Files and folders as the operating system has them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write, beside its place, which it takes when the block has ended well; gone if it has not.

    Its name is nobody else's: of several who write one file at once, each leaves it whole.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)
