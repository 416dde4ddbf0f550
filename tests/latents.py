"""Latent datasets as tests look at them and damage them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import tiny_config
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from ladd_dist.config import Config
from ladd_dist.data.mds import REJECTED, Manifest, columns


def rows_of(data: Path) -> list[dict[str, Any]]:
    """Every sample of a dataset, by the plain MDS reader, in the order of the ids."""
    rows = []
    for bucket in sorted(index.parent for index in data.glob("*/index.json")):
        for shard in json.loads((bucket / "index.json").read_text())["shards"]:
            reader = reader_from_json(str(bucket), "", shard)
            rows.extend(reader[i] for i in range(reader.samples))
    return sorted(rows, key=lambda row: row["id"])


def copy_of(dataset: Path, tmp_path: Path) -> tuple[Path, Config]:
    """A copy of the dataset to damage, and the configuration that made it."""
    shutil.copytree(dataset.parent, tmp_path / "copy")
    data = tmp_path / "copy" / "latents"
    return data, tiny_config(tmp_path / "run", data)


def tree_of(data: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def damage(file: Path, kind: str, where: float) -> None:
    """Change a file by the least, at this fraction of its length."""
    content = bytearray(file.read_bytes())
    place = int(where * len(content))
    if kind == "flip":
        content[place] ^= 1 << place % 8
    elif kind == "truncate":
        del content[place:]
    file.unlink()
    if kind != "delete":
        file.write_bytes(content)


def write_pairs(dataset: Path, to: Path) -> Path:
    """A dataset of pairs: each sample of another one against the next of its bucket that was drawn."""
    manifest = Manifest.read(dataset)
    for bucket in manifest.counts:
        ours = _in_bucket(dataset, bucket)
        pairs = zip(ours, [*ours[1:], ours[0]], strict=True)
        _write(to / bucket, [row | {REJECTED: other["latent"]} for row, other in pairs])
    replace(manifest, provenance=replace(manifest.provenance, pairs="table:tests")).write(to)
    return to


def write_fewer(dataset: Path, to: Path, counts: list[int]) -> Path:
    """A dataset of the first samples of another one's buckets, so many of each."""
    manifest = Manifest.read(dataset)
    kept = dict(zip(manifest.counts, counts, strict=True))
    for bucket, count in kept.items():
        _write(to / bucket, _in_bucket(dataset, bucket)[:count])
    replace(manifest, counts=kept).write(to)
    return to


def _in_bucket(dataset: Path, bucket: str) -> list[dict[str, Any]]:
    return [row for row in rows_of(dataset) if row["bucket"] == bucket]


def _write(bucket: Path, rows: list[dict[str, Any]]) -> None:
    shape, context, pooled = (rows[0][key].shape for key in ("latent", "context", "pooled"))
    schema = columns(shape, context, pooled, pairs=REJECTED in rows[0])
    with MDSWriter(out=str(bucket), columns=schema, hashes=["xxh64"]) as writer:
        for row in rows:
            writer.write(row)
