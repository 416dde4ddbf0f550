"""Prompts, buckets, manifest and synthesis."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALONE, BUCKETS, PER_BUCKET, TEACHER, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from latents import copy_of, rows_of, tree_of
from launch import join, run_ranks, start_ranks

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.mds import Manifest, Provenance, from_bits, read_empty, to_bits, write_empty
from ladd_dist.data.prompts import first_of_each_bucket, read_prompts
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing import writing
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.files.run_lock import RunLock
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals

# Prompts


def requests_of(tmp_path: Path, name: str, text: str, buckets: list[str] = BUCKETS, images: int = 1) -> list:
    path = tmp_path / name
    path.write_text(text)
    return read_prompts(path, buckets, images)


def test_text_prompts_are_dealt_to_the_buckets_in_turn(tmp_path: Path) -> None:
    requests = requests_of(tmp_path, "p.txt", "one\n\n  two \nthree\nfour\n")
    assert [(r.id, r.prompt, r.bucket.name) for r in requests] == [
        (0, "one", "32x32"),
        (1, "two", "32x64"),
        (2, "three", "64x32"),
        (3, "four", "32x32"),
    ]


def test_images_of_one_prompt_spread_over_the_buckets(tmp_path: Path) -> None:
    requests = requests_of(tmp_path, "p.txt", "one\ntwo\n", images=3)
    assert [r.prompt for r in requests] == ["one"] * 3 + ["two"] * 3
    assert [r.bucket.name for r in requests] == BUCKETS * 2
    assert [r.id for r in requests] == list(range(6))


def test_json_prompts_keep_the_bucket_they_name(tmp_path: Path) -> None:
    text = '{"prompt": "a", "bucket": "64x32"}\n{"prompt": "b"}\n{"prompt": "c", "bucket": null}\n'
    requests = requests_of(tmp_path, "p.jsonl", text)
    assert [(r.prompt, r.bucket.name) for r in requests] == [("a", "64x32"), ("b", "32x64"), ("c", "64x32")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"p\.jsonl:2: expected"),
        ("[1, 2]", r"p\.jsonl:2: expected"),
        ("{}", r"p\.jsonl:2: expected"),
        ('{"text": "a"}', r"p\.jsonl:2: unknown key 'text': known keys here are prompt, bucket"),
        ('{"prompt": 5}', r"p\.jsonl:2: 'prompt' and 'bucket' must be text"),
        ('{"prompt": "a", "bucket": 32}', r"p\.jsonl:2: 'prompt' and 'bucket' must be text"),
        (
            '{"prompt": "a", "bucket": "16x16"}',
            r"p\.jsonl:2: bucket '16x16' is not one of the configured 32x32",
        ),
    ],
)
def test_bad_prompt_lines_are_errors_that_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(LaddError, match=message):
        requests_of(tmp_path, "p.jsonl", f'{{"prompt": "fine"}}\n{line}\n')


def test_missing_and_empty_prompt_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(LaddError, match=r"none\.txt cannot be read"):
        read_prompts(tmp_path / "none.txt", BUCKETS)
    with pytest.raises(LaddError, match=r"p\.txt holds no prompts"):
        requests_of(tmp_path, "p.txt", " \n\n")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(LaddError, match=r"p\.txt:1: not UTF-8 text"):
        read_prompts(tmp_path / "p.txt", BUCKETS)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))
def test_ids_count_on_and_no_bucket_is_favoured(
    tmp_path_factory: pytest.TempPathFactory, prompts: int, images: int, buckets: int
) -> None:
    names = [f"{32 * (i + 1)}x32" for i in range(buckets)]
    path = tmp_path_factory.getbasetemp() / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(prompts)))
    requests = read_prompts(path, names, images)
    assert [r.id for r in requests] == list(range(prompts * images))
    counts = [sum(r.bucket.name == name for r in requests) for name in names]
    assert max(counts) - min(counts) <= 1


def test_first_of_each_bucket_is_in_order_and_limited(tmp_path: Path) -> None:
    groups = first_of_each_bucket(requests_of(tmp_path, "p.txt", "\n".join("abcdefg")), 2)
    assert [[r.prompt for r in group] for group in groups] == [["a", "d"], ["b", "e"], ["c", "f"]]


# Buckets


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_bucket_names_round_trip(height: int, width: int) -> None:
    bucket = Bucket(height, width)
    assert Bucket.parse(bucket.name) == bucket
    assert bucket.name == f"{height}x{width}"


@pytest.mark.parametrize("name", ["", "32", "32x", "x32", "32X32", "-32x32", "32x32x3", "3.5x2", "32 x 32"])
def test_other_bucket_names_are_errors(name: str) -> None:
    with pytest.raises(LaddError, match="not of the form HEIGHTxWIDTH"):
        Bucket.parse(name)


def test_latent_shapes_come_from_the_folder(teacher_folder: Path, random_teacher: Path) -> None:
    assert LatentSpace.of(teacher_folder).shape(Bucket(32, 64)) == (4, 8, 16)
    other = LatentSpace.of(random_teacher)
    assert other.shape(Bucket(32, 64)) == (8, 8, 16)
    assert other.grid(8, 16) == (4, 8)


def test_buckets_that_do_not_divide_or_exceed_the_position_table_are_errors(random_teacher: Path) -> None:
    space = LatentSpace.of(random_teacher)
    with pytest.raises(LaddError, match="bucket 30x32: height and width must be multiples of 4"):
        space.shape(Bucket(30, 32))
    with pytest.raises(LaddError, match="9x8 does not divide into the teacher's 2x2 patches"):
        space.shape(Bucket(36, 32))
    with pytest.raises(LaddError, match="exceeds the teacher's position table of 16x16"):
        space.shape(Bucket(32, 136))


# Schema


def provenance(**changes: Any) -> Provenance:
    made = Provenance("abc", "fp32", "def", 0, 4.5, 28, {"shift": 3.0}, BUCKETS, 1, 512, 4, 10)
    return replace(made, **changes)


def test_manifest_round_trips(tmp_path: Path) -> None:
    manifest = Manifest(provenance(), {"32x32": 7}, {"torch": "2"})
    assert read_empty(tmp_path) is None
    empty = Conditioning(torch.rand(1, 2, 3), torch.rand(1, 3))
    write_empty(tmp_path, empty)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert all(map(torch.equal, read_empty(tmp_path) or (), empty))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "empty.safetensors", "manifest.json"]
    (tmp_path / "empty.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(LaddError, match=r"empty\.safetensors is damaged \(.*: run launchers/synthesize\.py again"):
        read_empty(tmp_path)
    with pytest.raises(LaddError, match=r"empty\.safetensors is damaged \(.*is not what SHA256SUMS says"):
        Manifest.read(tmp_path)


def test_missing_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(LaddError, match=r"no dataset at data\.path=.*run launchers/synthesize\.py"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"provenance": {}, "counts": {}, "versions": {}}', "null"])
def test_damaged_manifest_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(LaddError, match=r"manifest\.json is damaged .*run launchers/synthesize\.py again"):
        Manifest.read(tmp_path)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bits_round_to_bf16_once(values: list[float]) -> None:
    tensor = torch.tensor(values)
    bits = to_bits(tensor)
    assert bits.dtype == np.int16
    assert torch.equal(from_bits(bits), tensor.to(torch.bfloat16).float())


# Synthesis


def test_synthesis_writes_the_documented_schema(dataset: Path) -> None:
    rows = rows_of(dataset)
    expected = {
        "id": int,
        "latent": np.ndarray,
        "context": np.ndarray,
        "pooled": np.ndarray,
        "prompt": str,
        "bucket": str,
        "seed": int,
        "guidance": float,
        "steps": int,
        "teacher": str,
    }
    shapes = {"32x32": (4, 8, 8), "32x64": (4, 8, 16), "64x32": (4, 16, 8)}
    for row in rows:
        assert set(row) == set(expected)
        assert all(
            isinstance(row[key], kind) or np.issubdtype(type(row[key]), kind) for key, kind in expected.items()
        )
        assert row["latent"].shape == shapes[row["bucket"]]
        assert row["context"].shape == (20, 64)  # 10 CLIP and 10 T5 positions, padding included
        assert row["pooled"].shape == (64,)
        assert {row[key].dtype for key in ("latent", "context", "pooled")} == {np.dtype(np.int16)}
        assert (row["guidance"], row["steps"], row["teacher"]) == (1.5, 2, fingerprint(TEACHER))
        assert torch.isfinite(from_bits(row["latent"].copy())).all()


def test_synthesis_draws_every_request_once(dataset: Path) -> None:
    requests = read_prompts(dataset.parent / "prompts.jsonl", BUCKETS, 3)
    rows = rows_of(dataset)
    assert [(row["id"], row["prompt"], row["bucket"]) for row in rows] == [
        (r.id, r.prompt, r.bucket.name) for r in requests
    ]
    assert [row["seed"] for row in rows] == [image_seed(0, "synthesis", r.id) for r in requests]
    assert len({row["latent"].tobytes() for row in rows}) == len(requests)


def test_manifest_tells_where_the_samples_came_from(dataset: Path) -> None:
    manifest = Manifest.read(dataset)
    assert manifest.counts == dict.fromkeys(BUCKETS, PER_BUCKET)
    made = manifest.provenance
    assert (made.teacher, made.guidance, made.steps, made.latent_channels) == (fingerprint(TEACHER), 1.5, 2, 4)
    assert made.scheduler["shift"] == 1.0
    assert set(manifest.versions) == {"torch", "diffusers", "transformers", "mosaicml-streaming"}


def test_another_seed_draws_other_latents(dataset: Path, tmp_path: Path) -> None:
    shutil.copy(dataset.parent / "prompts.jsonl", tmp_path)
    config = tiny_config(
        tmp_path, tmp_path / "latents", "seed=1", "synthesis.images_per_prompt=1", "synthesis.steps=1"
    )
    synthesize(config, ALONE)
    first, other = rows_of(dataset)[0], rows_of(tmp_path / "latents")[0]
    assert first["prompt"] == other["prompt"]
    assert first["latent"].tobytes() != other["latent"].tobytes()


def test_a_lost_part_is_drawn_again_exactly(dataset: Path, tmp_path: Path) -> None:
    data, config = copy_of(dataset, tmp_path)
    shutil.rmtree(data / "32x64" / "part-00001")
    (data / "32x64" / ".part-00001").mkdir()
    (data / "32x64" / ".part-00001" / "shard.00000.mds").write_bytes(b"half a shard")
    (data / "32x64" / "index.json").unlink()
    (data / "manifest.json").unlink()
    synthesize(config, ALONE)
    assert tree_of(data) == tree_of(dataset)


def test_finished_parts_are_not_drawn_again(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = copy_of(dataset, tmp_path)
    monkeypatch.setattr(writing, "_write_part", lambda *_: pytest.fail("a finished part was drawn again"))
    synthesize(config, ALONE)


def _parts_drawn(world: World, config: Config) -> list[str]:
    """Those that this rank has drawn."""
    drawn, write = list[str](), writing._write_part

    def record(part: Any, *rest: Any) -> None:
        drawn.append(str(part.folder))
        write(part, *rest)

    writing._write_part = record
    synthesize(config, world)
    return drawn


def test_missing_parts_are_dealt_out_evenly_whoever_was_to_draw_them_before(dataset: Path, tmp_path: Path) -> None:
    data, config = copy_of(dataset, tmp_path)
    lost = sorted(data.glob("*/part-*"))[::2]
    for part in lost:
        shutil.rmtree(part)
    first, second = run_ranks(_parts_drawn, config, size=2)
    assert sorted(first + second) == [str(part) for part in lost]
    assert len(first) - len(second) in (0, 1)
    assert tree_of(data) == tree_of(dataset)


class Looks(RunLock):
    """Tells when it was looked at a few times."""

    def __init__(self, told: Path) -> None:
        super().__init__()
        self._left, self._told = 3, told

    def check(self) -> None:
        self._left -= 1
        if not self._left:
            self._told.touch()


def _synthesize_once_waited_for(world: World, config: Config, told: Path) -> None:
    """Rank 1, which has nothing to draw, looks at its lock; rank 0 does not draw before."""
    write = writing._write_part

    def write_once_told(*args: Any) -> None:
        while not told.exists():
            time.sleep(0.01)
        write(*args)

    writing._write_part = write_once_told
    synthesize(config, world, Looks(told) if world.rank else None)


def test_who_has_nothing_to_draw_waits_outside_of_collectives_which_would_time_out(
    dataset: Path, tmp_path: Path
) -> None:
    data, config = copy_of(dataset, tmp_path)
    shutil.rmtree(next(data.glob("*/part-00000")))
    run_ranks(_synthesize_once_waited_for, config, tmp_path / "told", size=2)
    assert tree_of(data) == tree_of(dataset)


def _synthesize_until_killed(world: World, config: Config, rows: int) -> None:
    """Or until it would wait for others, who are killed."""
    write = writing.MDSWriter.write
    written = iter(range(rows))

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_die(writer: Any, row: dict) -> None:
        if next(written, None) is None:
            die()
        write(writer, row)

    writing.MDSWriter.write, SharedStop.agreed = write_or_die, die
    synthesize(config, world)


def _synthesize(world: World, config: Config) -> None:
    synthesize(config, world)


def test_synthesis_killed_at_random_moments_with_other_ranks_each_time_ends_the_same(
    dataset: Path, tmp_path: Path
) -> None:
    """Byte for byte as it had run through on one rank."""
    shutil.copy(dataset.parent / "prompts.jsonl", tmp_path)
    data, draw = tmp_path / "latents", random.Random(0)
    config = tiny_config(tmp_path, data)
    for size in (1, 2, 3, 1):
        rows = draw.randrange(1, 18)  # so few that every start leaves some to draw
        codes = join(start_ranks(_synthesize_until_killed, config, rows, size=size))
        assert -signal.SIGKILL in codes and 0 not in codes
        assert not (data / "manifest.json").exists()
        with pytest.raises(LaddError, match="no dataset"):
            Manifest.read(data)
    run_ranks(_synthesize, config, size=2)
    assert tree_of(data) == tree_of(dataset)


class LastIsAsked(Signals):
    """The last rank alone is asked to stop, and has told so before any other looks whether it was."""

    def __init__(self, world: World, folder: Path) -> None:
        self._last, self._told = world.rank == world.size - 1, folder / "told"
        self._looks = 0

    @property  # type: ignore[override]
    def stop(self) -> bool:
        self._looks += 1
        if self._last and self._looks > 1:
            self._told.touch()
        while not self._last and not self._told.exists():
            time.sleep(0.01)
        return self._last


def _synthesize_until_asked(world: World, config: Config) -> str:
    try:
        synthesize(config, world, signals=LastIsAsked(world, Path(config.run_dir)))
    except Requeue as stop:
        return str(stop)
    return ""


@pytest.mark.parametrize("size", [1, 2])
def test_synthesis_that_is_asked_to_stop_says_so_on_all_ranks_and_goes_on(
    dataset: Path, tmp_path: Path, size: int
) -> None:
    shutil.copy(dataset.parent / "prompts.jsonl", tmp_path)
    config = tiny_config(tmp_path, tmp_path / "latents")
    said = run_ranks(_synthesize_until_asked, config, size=size)
    assert said == ["stopped by a signal: start the same command again, finished parts are kept"] * size
    assert not (tmp_path / "latents/manifest.json").exists()
    assert not list((tmp_path / "latents").glob("*/part-*")), "each left after its first batch"
    synthesize(config, ALONE)
    assert tree_of(tmp_path / "latents") == tree_of(dataset)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("synthesis.steps=3", "steps=2"),
        ("synthesis.guidance=2.5", "guidance=1.5"),
        ("seed=5", "seed=0"),
        ("synthesis.part_samples=11", "part_samples=10"),
        ("synthesis.images_per_prompt=1", "images_per_prompt=3"),
        ("teacher.max_t5_tokens=12", "max_t5_tokens=10"),
    ],
)
def test_another_plan_in_the_same_folder_is_refused(dataset: Path, override: str, key: str) -> None:
    config = tiny_config(dataset.parent / "run", dataset, override)
    with pytest.raises(
        LaddError, match=rf"holds latents made with {key}, but this run.*set data\.path to a new folder"
    ):
        synthesize(config, ALONE)


@pytest.mark.parametrize("text", ["[]", "null", '"x"'])
def test_a_plan_that_is_none_is_damaged(dataset: Path, tmp_path: Path, text: str) -> None:
    (data := tmp_path / "latents").mkdir()
    (data / "plan.json").write_text(text)
    config = tiny_config(tmp_path, data, f"synthesis.prompts={dataset.parent / 'prompts.jsonl'}")
    with pytest.raises(LaddError, match=r"plan\.json is damaged .*: set data\.path to a new folder"):
        synthesize(config, ALONE)


@pytest.mark.parametrize("file", ["32x64/index.json", "manifest.json"])
def test_a_folder_with_other_data_is_refused_and_stays(dataset: Path, tmp_path: Path, file: str) -> None:
    data = tmp_path / "latents"
    (data / file).parent.mkdir(parents=True)
    (data / file).write_text("mine")
    config = tiny_config(tmp_path, data, f"synthesis.prompts={dataset.parent / 'prompts.jsonl'}")
    with pytest.raises(LaddError, match=rf"holds {file.split('/')[0]} but no plan\.json, .*set data\.path to a new"):
        synthesize(config, ALONE)
    assert tree_of(data) == {file: b"mine"}


def test_other_prompts_in_the_same_folder_are_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("a one\n")
    config = tiny_config(tmp_path, dataset, f"synthesis.prompts={tmp_path / 'other.txt'}")
    with pytest.raises(LaddError, match="prompts="):
        synthesize(config, ALONE)


def test_buckets_are_checked_before_anything_is_drawn(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    overrides = [f"synthesis.prompts={tmp_path / 'p.txt'}", "synthesis.buckets=[32x32,30x32]"]
    with pytest.raises(LaddError, match="bucket 30x32: height and width must be multiples of 4"):
        synthesize(tiny_config(tmp_path, tmp_path / "latents", *overrides), ALONE)
    assert not (tmp_path / "latents").exists()
