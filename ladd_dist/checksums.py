"""Checksums of a folder's files, in a list that ``sha256sum --check SHA256SUMS`` reads too."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
_CHUNK = 1 << 22


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the list, from file names to checksums."""
    (folder / SUMS).write_text(
        "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8"
    )


def read_sums(folder: Path) -> dict[str, str]:
    """The list, from file names to checksums.

    Raises:
        OSError: if there is none.
        ValueError: if it is not such a list.
    """
    *lines, rest = (folder / SUMS).read_text(encoding="utf-8").split("\n")
    rows = [line.split("  ") for line in lines]
    if rest or any(len(row) != 2 for row in rows):
        raise ValueError(f"{SUMS} is cut short or altered")
    return {name: digest for digest, name in rows}


def check_sum(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Hold a file against the list.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not the file that the list was made of.
    """
    if sha256(folder / name) != sums.get(name):
        raise ValueError(f"{name} is not what {SUMS} says")
