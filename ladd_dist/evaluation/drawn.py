"""What is kept of a drawn set: numbers of its pictures, over all ranks and in the order of pictures."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.distributed.world import World
from ladd_dist.files.disk import whole


class Rows(NamedTuple):
    """Numbers ``values (n, ...)``, each row of the picture ``pictures (n,)``, int64, ascending."""

    pictures: Tensor
    values: Tensor

    def of(self, numbers: Tensor) -> "Rows":
        """Those of some pictures."""
        kept = torch.isin(self.pictures, numbers)
        return Rows(self.pictures[kept], self.values[kept])

    @staticmethod
    def joined(parts: "Iterable[Rows]") -> "Rows":
        """Those of several, by picture."""
        pictures, values = (torch.cat(column) for column in zip(*parts, strict=True))
        order = pictures.argsort(stable=True)
        return Rows(pictures[order], values[order])


@dataclass
class Drawn:
    """A drawn set: rows by the name of what was looked at, and the mean time to draw a picture."""

    rows: dict[str, Rows]
    seconds: float

    def of(self, numbers: Tensor) -> dict[str, Rows]:
        """The rows of some pictures, without what was looked at in none of them."""
        found = {name: rows.of(numbers) for name, rows in self.rows.items()}
        return {name: rows for name, rows in found.items() if len(rows.pictures)}


class Collected:
    """This rank's rows of a set, as they come."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Rows]] = {}

    def add(self, name: str, numbers: list[int], values: Tensor) -> None:
        """Take ``values (k B, ...)``, k rows for each of ``B`` pictures one after the other."""
        pictures = torch.tensor(numbers).repeat_interleave(len(values) // len(numbers))
        self._rows.setdefault(name, []).append(Rows(pictures, values))

    def take(self, rows: Mapping[str, Rows]) -> None:
        """Add what was found elsewhere."""
        for name, of in rows.items():
            self._rows.setdefault(name, []).append(of)

    def rows(self) -> dict[str, Rows]:
        """What there is, by picture."""
        return {name: Rows.joined(rows) for name, rows in self._rows.items()}

    def over(self, world: World) -> dict[str, Rows]:
        """Every rank's, the same on all, by name."""
        parts: list[dict[str, Rows]] = world.gather(self.rows())
        names = sorted({name for part in parts for name in part})
        return {name: Rows.joined(part[name] for part in parts if name in part) for name in names}


Keyed = dict[tuple[str, ...], Rows]
"""Rows by names of a caller's choice."""


def save_rows(file: Path, rows: Keyed, facts: Mapping[str, str]) -> None:
    """Write them, whole or not at all, whoever else writes them.

    Args:
        facts: words of the caller's, to be read back with them.
    """
    tensors = {json.dumps([*key, part]): tensor for key, of in rows.items() for part, tensor in of._asdict().items()}
    with whole(file) as temporary:
        save_file(tensors, temporary, dict(facts))


def load_rows(file: Path) -> tuple[Keyed, dict[str, str]] | None:
    """What `save_rows` wrote, rows and facts; None if it is not there or not whole."""
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    try:
        with safe_open(file, "pt") as stored:
            facts = stored.metadata() or {}
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                *key, part = json.loads(name)
                found.setdefault(tuple(key), {})[part] = stored.get_tensor(name)
    except (OSError, SafetensorError):
        return None
    return {key: Rows(**parts) for key, parts in found.items()}, facts
