"""A stream's ``index.json``, and checks of the shards that it lists against the sizes and hashes in it.

MosaicML Streaming checks hashes only of what it downloads, and reads a local shard unseen.
"""

import re
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from streaming.base.format.mds.encodings import get_mds_encoded_size

from ladd_dist.data.damage import named, redraw
from ladd_dist.data.mds import INDEX, columns
from ladd_dist.files.checksums import checksum

_BITS = re.compile(r"ndarray:int16:([1-9]\d*(?:,[1-9]\d*)*)")


def _inside(name: str) -> str:
    """Streaming reads whatever file an index names, and writes one where it decompresses a shard."""
    path = PurePath(name)
    if path.is_absolute() or not path.name or ".." in path.parts:
        raise ValueError(f"'{name}' is no file inside of its folder")
    return name


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileRecord(_Record):
    """A file as it was written."""

    basename: Annotated[str, AfterValidator(_inside)]
    bytes: NonNegativeInt
    hashes: dict[str, str]
    """From names of algorithms to digests; empty in a dataset that was written without."""

    def verify(self, folder: Path) -> None:
        """Read the file and check its size and hashes.

        Raises:
            LaddError: if it is missing, has another size or another hash.
        """
        file = folder / self.basename
        with named(file, redraw(file.parent)):
            if (size := file.stat().st_size) != self.bytes:
                raise ValueError(f"it has {size} bytes, its index says {self.bytes}")
            for algorithm, digest in self.hashes.items():
                if checksum(file, algorithm) != digest:
                    raise ValueError(f"its {algorithm} is not the one that its index has")


class ShardRecord(_Record):
    """A shard: its samples' columns and its file, compressed or not."""

    version: Literal[2]
    format: Literal["mds"]
    samples: PositiveInt
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    compression: str | None
    hashes: list[str]
    raw_data: FileRecord
    zip_data: FileRecord | None
    size_limit: NonNegativeInt | str | None

    def check(self, latent: tuple[int, ...], pairs: bool) -> None:
        """Check the columns against the schema, for latents of a shape and, of ``pairs``, a rejected one beside each.

        Raises:
            ValueError: naming what differs.
        """
        found = dict(zip(self.column_names, self.column_encodings, strict=False))
        context, pooled = (_shape(found.get(key, "")) for key in ("context", "pooled"))
        expected = columns(latent, context, pooled, pairs)
        if wrong := sorted(key for key in found | expected if found.get(key) != expected.get(key)):
            raise ValueError(f"its column {wrong[0]} is {found.get(wrong[0])}, not {expected.get(wrong[0])}")
        if not len(found) == len(self.column_names) == len(self.column_encodings):
            raise ValueError("its columns have not one name and one encoding each")
        if self.column_sizes != [get_mds_encoded_size(encoding) for encoding in self.column_encodings]:
            raise ValueError(f"the sizes {self.column_sizes} are not those of its columns")

    def files(self, folder: Path) -> list[FileRecord]:
        """What must be there: the shard or its compressed form, beside which a decompressed one may lie."""
        if self.zip_data is None:
            return [self.raw_data]
        return [self.zip_data, *[raw for raw in [self.raw_data] if (folder / raw.basename).exists()]]


class Index(_Record):
    """A stream: of a bucket, or of one of its parts."""

    version: Literal[2]
    shards: list[ShardRecord]

    @property
    def samples(self) -> int:
        """Of all shards."""
        return sum(shard.samples for shard in self.shards)

    @staticmethod
    def read(
        folder: Path, samples: int, latent: tuple[int, ...], pairs: bool, remedy: str, fewer: bool = False
    ) -> "Index":
        """Read the index of a folder of shards.

        Args:
            folder: a bucket's or a part's.
            samples: how many it must have.
            latent: shape ``(C, H, W)`` of a latent.
            pairs: whether each sample must have a rejected latent, too.
            remedy: what the user can do if it is damaged.
            fewer: whether it may have fewer, down to none, as where ties are left out.

        Raises:
            LaddError: if it is missing or damaged.
        """
        with named(folder / INDEX, remedy):
            index = Index.model_validate_json((folder / INDEX).read_bytes())
            for shard in index.shards:
                shard.check(latent, pairs)
            if index.samples > samples or (index.samples < samples and not fewer):
                raise ValueError(f"it has {index.samples} samples, not {samples}")
            if len({tuple(shard.column_encodings) for shard in index.shards}) > 1:
                raise ValueError("its shards have different columns")
        return index


def _shape(encoding: str) -> tuple[int, ...]:
    """Of a column of bf16 bits."""
    match = _BITS.fullmatch(encoding)
    return tuple(map(int, match[1].split(","))) if match else ()
