"""What a dataset is to be made of: entries cut into parts, how they were made, and who makes samples of them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.mds import MANIFEST, Provenance, columns
from ladd_dist.data.parts import part_folder
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Encoded
from ladd_dist.errors import LaddError
from ladd_dist.models.fingerprint import is_of

_PLAN = "plan.json"


class Entry(Protocol):
    """What becomes a sample."""

    @property
    def bucket(self) -> Bucket:
        """The sample's."""
        ...


E = TypeVar("E", bound=Entry)
E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


@dataclass(frozen=True)
class Part(Generic[E]):
    """A run of entries of one bucket that is written whole."""

    folder: Path
    entries: list[E]


@dataclass(frozen=True)
class Plan(Generic[E]):
    """What is to be written into ``data.path``.

    Attributes:
        name: of the progress bar.
        unit: of which an entry is one, in the bar and the log.
        ties: whether an entry may make no sample.
    """

    parts: list[Part[E]]
    provenance: Provenance
    space: LatentSpace
    name: str
    unit: str
    ties: bool = False


class Maker(Protocol[E_contra]):
    """Makes samples, with its networks loaded."""

    @property
    def batch(self) -> int:
        """Entries that it takes at a time."""
        ...

    def columns(self, entry: E_contra) -> dict[str, str]:
        """The MDS columns of an entry's bucket, as of `mds.columns`."""
        ...

    def empty(self) -> Conditioning:
        """The empty prompt's, one row: what guidance leads away from."""
        ...

    def samples(self, entries: Sequence[E_contra]) -> list[dict[str, Any]]:
        """The samples of entries of one bucket, in their order: a function of the entries alone."""
        ...


def plan_parts(root: Path, entries: Sequence[E], part_samples: int) -> list[Part[E]]:
    """Cut the entries of every bucket into parts, a function of their list alone."""
    by_bucket: dict[str, list[E]] = defaultdict(list)
    for entry in entries:
        by_bucket[entry.bucket.name].append(entry)
    return [
        Part(part_folder(root, bucket, start // part_samples), rows[start : start + part_samples])
        for bucket, rows in sorted(by_bucket.items())
        for start in range(0, len(rows), part_samples)
    ]


def columns_of(encoded: Encoded, pairs: bool = False) -> dict[str, str]:
    """The MDS columns of a bucket, by prompts that were encoded for it."""
    context, pooled = (tuple(tensor.shape[1:]) for tensor in encoded.cond)
    return columns(encoded.shape, context, pooled, pairs)


def check_plan(root: Path, provenance: Provenance, folder: str, world: World) -> Provenance:
    """Record what is being made, or compare with what was: a folder never mixes two plans.

    Args:
        folder: the teacher's.

    Returns:
        ``provenance``, with the teacher's fingerprint as the plan has it.

    Raises:
        LaddError: if the folder holds another plan's samples, or what no plan made.
    """
    plan = root / _PLAN
    if plan.exists():
        try:
            before = json.loads(plan.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LaddError(f"{plan} is damaged ({error}): set data.path to a new folder, or remove {root}") from None
        if not isinstance(before, dict):
            raise LaddError(f"{plan} is damaged (no mapping): set data.path to a new folder, or remove {root}")
        if is_of(folder, str(before.get("teacher"))):
            provenance = replace(provenance, teacher=before["teacher"])
        now = asdict(provenance)
        if changed := [key for key in now if before.get(key) != now[key]]:
            key = changed[0]
            raise LaddError(
                f"{root} holds latents made with {key}={before.get(key)}, but this run has {key}={now[key]}: "
                "set data.path to a new folder, or remove the old one"
            )
    elif others := [name for name in (MANIFEST, *provenance.buckets) if (root / name).exists()]:
        raise LaddError(
            f"{root} holds {others[0]} but no {_PLAN}, so no synthesis made it: set data.path to a new folder"
        )
    world.barrier()
    if world.is_main and not plan.exists():
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".{_PLAN}"
        temporary.write_text(json.dumps(asdict(provenance), indent=2) + "\n", encoding="utf-8")
        temporary.replace(plan)
    world.barrier()
    return provenance
