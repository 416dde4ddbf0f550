"""Lock files: which jobs hold a folder, and which of them are alive.

Line by line a file holds its holder, its own inode as its holder made it, random digits that tell it from any other,
and a count that grows while its holder lives.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.files.holder import Holder

NAME = ".lock-"
"""A number follows."""
DEAD_AFTER = 30.0
"""Seconds without a change after which a holder counts as dead. A thread needs the interpreter for its beat, so this
must exceed the longest stretch in which a library keeps it to itself, or a file server stutters."""


@dataclass
class _Sighting:
    content: bytes
    since: float
    moved: bool = False


class Watch:
    """What a waiting job has seen of the lock files, by its own clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Sighting] = {}

    def living(self, files: dict[Path, bytes], now: float) -> dict[Path, bool]:
        """Files whose holder may live, and whether it does for certain."""
        result = {}
        for path, content in files.items():
            seen = self._seen.setdefault(path, _Sighting(content, now))
            if seen.content != content:
                self._seen[path] = seen = _Sighting(content, now, moved=True)
            holder = holder_of(content)
            if (holder and holder.gone()) or now - seen.since > DEAD_AFTER:
                continue
            result[path] = seen.moved or bool(holder and holder.seen() and _is_original(path, content))
        return result


def lock_files(folder: Path) -> dict[Path, bytes]:
    """Every holder's file with its content, by ascending number."""
    found = {}
    for path in sorted((p for p in folder.glob(f"{NAME}*") if p.name.removeprefix(NAME).isdigit()), key=number):
        try:
            found[path] = path.read_bytes()
        except FileNotFoundError:
            continue  # its holder has left
    return found


def _is_original(path: Path, content: bytes) -> bool:
    """Whether it is the very file that its holder made; in a copied folder there is a copy, which nobody changes.

    False proves no copy: some file systems give a file another inode when it is looked up again.
    """
    try:
        return content.split(b"\n")[1] == b"%d" % path.stat().st_ino
    except (FileNotFoundError, IndexError):
        return False


def number(path: Path) -> int:
    """The number in a file's name."""
    return int(path.name.removeprefix(NAME))


def holder_of(content: bytes) -> Holder | None:
    """Whose file it is; None if it is being written."""
    try:
        return Holder(**json.loads(content.split(b"\n")[0]))
    except (ValueError, TypeError):
        return None
