"""Damaged datasets: every byte that is trained on is verified, and whatever is wrong is one line with its remedy."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ALONE, BUCKETS, TEACHER, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from latents import copy_of, damage, rows_of, tree_of
from ranks import ranks
from streaming import MDSWriter

from ladd_dist.config import Config
from ladd_dist.data import check as check_module
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.check import check_dataset
from ladd_dist.data.index import FileRecord
from ladd_dist.data.mds import Manifest, columns, from_bits
from ladd_dist.data.reader import LatentReader
from ladd_dist.distributed.world import World
from ladd_dist.drawing import writing
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError
from ladd_dist.files.checksums import SUMS
from ladd_dist.models.fingerprint import fingerprint

_PART = "32x64/part-00001"
_SHARD = f"{_PART}/shard.00000.mds"
_MAKERS = r"run launchers/synthesize\.py again \(encode\.py or pairs\.py for given pictures or pairs\)"
_REDRAW = rf": delete \S*{_PART} and {_MAKERS}, or copy the dataset again$"
_AGAIN = rf": {_MAKERS}, which keeps finished parts, or copy the dataset again$"


@cache
def teacher() -> tuple[LatentSpace, str]:
    return LatentSpace.of(TEACHER), fingerprint(TEACHER)


def check(config: Config, world: World = ALONE) -> Manifest:
    return check_dataset(config, *teacher(), world)


def test_text_of_another_length_than_the_datasets_is_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(LaddError, match=r"drawn with teacher\.max_t5_tokens=10, .* has 12: set it to 10, or synth"):
        check(tiny_config(tmp_path, dataset, "teacher.max_t5_tokens=12"))


def trained_on(data: Path) -> list[tuple[Any, ...]]:
    rows = rows_of(data)
    return [
        (row["id"], row["bucket"], *(row[key].tobytes() for key in ("latent", "context", "pooled"))) for row in rows
    ]


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file. Returned is what takes the place of the whole."""
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(change(tree) or tree))


# Whatever happens to a file


@pytest.fixture(scope="module", params=["sealed", "written before there were checksums"])
def victim(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, _ = copy_of(dataset, tmp_path_factory.mktemp("victim"))
    if request.param != "sealed":
        (data / SUMS).unlink()
    return data


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["flip", "truncate", "delete"]), st.floats(0, 1, exclude_max=True))
def test_any_damage_is_named_in_one_line_or_changes_nothing(
    victim: Path, dataset: Path, draw: st.DataObject, kind: str, where: float
) -> None:
    file = victim / draw.draw(st.sampled_from(sorted(tree_of(victim))))
    content = file.read_bytes()
    damage(file, kind, where)
    try:
        assert check(tiny_config(victim, victim)).counts == dict.fromkeys(BUCKETS, 24)
    except LaddError as error:
        assert "\n" not in str(error) and str(victim) in str(error)
    else:
        assert trained_on(victim) == trained_on(dataset)
    finally:
        file.write_bytes(content)


# What the line says


def _flip(data: Path) -> None:
    damage(data / _SHARD, "flip", 0.5)


def _truncate(data: Path) -> None:
    damage(data / _SHARD, "truncate", 0.5)


def _empty(data: Path) -> None:
    damage(data / _SHARD, "truncate", 0)


def _delete(data: Path) -> None:
    damage(data / _SHARD, "delete", 0)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_flip, r"is damaged \(its xxh64 is not the one that its index has\)"),
        (_truncate, r"is damaged \(it has \d+ bytes, its index says \d+\)"),
        (_empty, r"is damaged \(it has 0 bytes, its index says \d+\)"),
        (_delete, "is missing"),
    ],
)
def test_a_damaged_shard_is_named_and_mended_by_the_remedy(
    dataset: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    data, config = copy_of(dataset, tmp_path)
    harm(data)
    for look in (lambda: check(config), lambda: synthesize(config, ALONE)):
        with pytest.raises(LaddError, match=rf"{_SHARD} {says}{_REDRAW}"):
            look()
    shutil.rmtree(data / _PART)
    synthesize(config, ALONE)
    check(config)
    assert tree_of(data) == tree_of(dataset)


def first(key: str, value: Any) -> Callable[[dict], None]:
    """Set a key of an index's first shard, or of its file if it is written ``raw_data.KEY``."""

    def change(tree: dict) -> None:
        shard = tree["shards"][0]
        *parent, leaf = key.split(".")
        (shard[parent[0]] if parent else shard)[leaf] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: [0], r"is damaged \(Input should be an object\)"),
        (lambda tree: tree.pop("shards") and None, r"is damaged \(shards: Field required\)"),
        (lambda tree: tree["shards"].clear(), r"is damaged \(it has 0 samples, not 24\)"),
        (lambda tree: tree["shards"].pop() and None, r"is damaged \(it has 20 samples, not 24\)"),
        (lambda tree: tree.update(version=3), r"is damaged \(version: Input should be 2\)"),
        (
            lambda tree: tree["shards"][0].pop("raw_data") and None,
            r"is damaged \(shards\.0\.raw_data: Field required\)",
        ),
        (first("format", "xsv"), r"is damaged \(shards\.0\.format: Input should be 'mds'\)"),
        (first("samples", 11), r"is damaged \(it has 25 samples, not 24\)"),
        (first("samples", "10"), r"is damaged \(shards\.0\.samples: Input should be a valid integer\)"),
        (first("column_sizes", [8] * 10), r"is damaged \(the sizes .* are not those of its columns\)"),
        (first("column_encodings", ["pkl"] * 10), r"is damaged \(its column bucket is pkl, not str\)"),
        (first("column_names", ["id"]), r"is damaged \(its column bucket is None, not str\)"),
        (
            lambda tree: tree["shards"][0]["column_names"].append("id"),
            r"is damaged \(its columns have not one name and one encoding each\)",
        ),
    ],
)
def test_a_damaged_index_is_named(dataset: Path, tmp_path: Path, change: Callable[[Any], Any], says: str) -> None:
    data, config = copy_of(dataset, tmp_path)
    (data / SUMS).unlink()  # or they would be the first to see it
    edit(data / "32x64" / "index.json", change)
    with pytest.raises(LaddError, match=rf"32x64/index\.json {says}{_AGAIN}"):
        check(config)


@pytest.mark.parametrize("key", ["raw_data", "zip_data"])
@pytest.mark.parametrize("name", ["../../outside/shard.mds", "part-00000/../../shard.mds", "/outside.mds", "", "."])
def test_a_name_that_leads_out_of_the_dataset_is_refused_before_anything_is_read(
    dataset: Path, tmp_path: Path, key: str, name: str
) -> None:
    """Streaming would write a shard there as it decompresses it."""
    data, config = copy_of(dataset, tmp_path)
    (data / SUMS).unlink()
    edit(data / "32x64" / "index.json", first(key, {"basename": name, "bytes": 1, "hashes": {}}))
    says = rf"is damaged \(shards\.0\.{key}\.basename: '{re.escape(name)}' is no file inside of its folder\)"
    with pytest.raises(LaddError, match=rf"32x64/index\.json {says}{_AGAIN}"):
        check(config)


def test_a_hash_that_nobody_knows_is_no_hash_to_pass_over(dataset: Path, tmp_path: Path) -> None:
    data, config = copy_of(dataset, tmp_path)
    (data / SUMS).unlink()
    edit(data / "32x64" / "index.json", first("raw_data.hashes", {"xxh65": "0"}))
    with pytest.raises(LaddError, match=r"part-00000/shard\.00000\.mds is damaged \(unsupported hash type xxh65\)"):
        check(config)


@pytest.mark.parametrize("name", ["manifest.json", "32x64/index.json", SUMS])
@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_damage_to_what_the_parts_know_is_named_and_mended_by_the_remedy(
    dataset: Path, tmp_path: Path, name: str, kind: str
) -> None:
    data, config = copy_of(dataset, tmp_path)
    damage(data / name, kind, 0.9)
    with pytest.raises(LaddError, match=_AGAIN):
        check(config)
    synthesize(config, ALONE)
    check(config)
    assert tree_of(data) == tree_of(dataset)


def test_a_file_that_cannot_be_read_is_named(dataset: Path, tmp_path: Path) -> None:
    data, config = copy_of(dataset, tmp_path)
    (data / _SHARD).unlink()
    os.symlink("shard.00000.mds", data / _SHARD)  # to itself: root may read what permissions forbid
    with pytest.raises(LaddError, match=rf"{_SHARD} cannot be read \(Too many levels of symbolic links\){_REDRAW}"):
        check(config)


# Synthesis over damaged parts


def test_a_part_without_its_index_is_not_finished(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = copy_of(dataset, tmp_path)
    (data / _PART / "index.json").unlink()
    check(config)  # training reads the stream's
    monkeypatch.setattr(writing, "_write_part", lambda *_: pytest.fail("drew before it had looked"))
    with pytest.raises(LaddError, match=rf"{_PART}/index\.json is missing{_REDRAW}"):
        synthesize(config, ALONE)


# Other ways in which a dataset may be stored


@pytest.mark.parametrize("hashes", [["sha1"], ["md5", "sha256"], ["xxh3_128"], []])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_datasets_of_other_hashes_and_compressed_ones_are_verified_and_read(
    dataset: Path, tmp_path: Path, hashes: list[str], compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = copy_of(dataset, tmp_path)
    (data / SUMS).unlink()
    rows = [row for row in rows_of(dataset) if row["bucket"] == "32x64"]
    shapes = [rows[0][key].shape for key in ("latent", "context", "pooled")]
    shutil.rmtree(data / "32x64")
    with MDSWriter(
        out=str(data / "32x64"), columns=columns(*shapes), hashes=hashes, compression=compression
    ) as writer:
        for row in rows:
            writer.write(row)
    warnings: list[str] = []
    monkeypatch.setattr(check_module, "warn", warnings.append)
    manifest = check(config)
    unhashed = f"1 shards of data.path={data} have no hashes in their index: only their sizes were verified"
    assert warnings == ([] if hashes else [unhashed])
    (shard,) = (data / "32x64").glob("shard.*")
    damage(shard, "flip", 0.5)
    if hashes:
        with pytest.raises(LaddError, match=rf"{shard.name} is damaged \(its {hashes[0]} "):
            check(config)
    damage(shard, "flip", 0.5)
    batches = iter(LatentReader(config, manifest, ALONE))
    drawn = {i: batch for (batch,) in (next(batches) for _ in range(9)) for i in batch.ids}
    row = rows[0]
    batch = drawn[row["id"]]
    assert batch.latents[batch.ids.index(row["id"])].equal(from_bits(row["latent"].copy()))
    check(config)  # beside the compressed shard there is a decompressed one by now
    damage(data / "32x64" / "shard.00000.mds", "truncate", 0.5)
    with pytest.raises(LaddError, match=r"shard\.00000\.mds is damaged \(it has \d+ bytes"):
        check(config)


# Ranks


def _what_is_said(world: World, configs: list[Config]) -> tuple[str, list[str]]:
    """By `check` on every rank, of its own copy; and the files that the rank has read."""
    read: list[str] = []
    verify = FileRecord.verify

    def record(self: FileRecord, folder: Path) -> None:
        read.append(str(folder / self.basename))
        verify(self, folder)

    FileRecord.verify = record  # type: ignore[method-assign]
    try:
        check(configs[world.rank % len(configs)], world)
    except LaddError as error:
        return str(error), read
    finally:
        FileRecord.verify = verify  # type: ignore[method-assign]
    return "", read


def test_ranks_divide_one_copy_and_read_all_of_several(dataset: Path, tmp_path: Path) -> None:
    configs = [copy_of(dataset, tmp_path / name)[1] for name in ("left", "right")]
    every = [sorted(str(path) for path in Path(c.data.path).rglob("*.mds")) for c in configs]
    shared = ranks(2)(_what_is_said, configs[:1])
    assert sorted(shared[0][1] + shared[1][1]) == every[0] and len(shared[0][1]) == 5
    apart = ranks(2)(_what_is_said, configs)
    assert [(said, sorted(read)) for said, read in apart] == [("", files) for files in every]


@pytest.mark.parametrize("name", ["manifest.json", "64x32/index.json", _SHARD])
def test_damage_that_one_rank_finds_refuses_all_of_them(dataset: Path, tmp_path: Path, name: str) -> None:
    configs = [copy_of(dataset, tmp_path / side)[1] for side in ("left", "right")]
    damage(Path(configs[1].data.path, name), "flip", 0.5)
    (first, _), (second, _) = ranks(2)(_what_is_said, configs)
    assert first == second and first.startswith(f"{configs[1].data.path}/{name} is damaged")
