"""Checksums of a folder's files, in a list that ``sha256sum --check SHA256SUMS`` reads too."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import xxhash

SUMS = "SHA256SUMS"


def checksum(file: Path, algorithm: str) -> str:
    """Checksum of a file's content.

    Args:
        algorithm: one of hashlib or xxhash, by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if there is no such algorithm.
    """
    known = algorithm in xxhash.algorithms_available
    with file.open("rb") as data:
        return hashlib.file_digest(data, getattr(xxhash, algorithm) if known else algorithm).hexdigest()


def sha256(file: Path) -> str:
    """The checksum of the list."""
    return checksum(file, "sha256")


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
