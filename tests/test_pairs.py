"""Preference pairs: their schema, from a table or from the teacher's own ranked samples to batches."""

import base64
import csv
import itertools
import json
import logging
import math
import os
import re
import runpy
import shutil
import signal
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALONE, BUCKETS, ROOT, TEACHER, TINY, tiny_config, tiny_overrides, write_prompts
from documented import documented
from hypothesis import given, settings
from hypothesis import strategies as st
from latents import rows_of, tree_of
from launch import join, launch, run_ranks, start_ranks
from PIL import Image
from torch import Tensor

from ladd_dist.cli import Launch
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace, nearest
from ladd_dist.data.check import check_dataset
from ladd_dist.data.mds import REJECTED, Manifest, collate, from_bits
from ladd_dist.data.picture_table import read_pairs, read_pictures
from ladd_dist.data.prompts import read_prompts
from ladd_dist.data.reader import LatentReader
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.digits import TRAIN_PROMPTS
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.digits.prompts import digits_in
from ladd_dist.digits.scans import LAYOUTS, load_part, render
from ladd_dist.digits.stroke import stroke
from ladd_dist.distributed.world import World
from ladd_dist.drawing import given as given_pairs
from ladd_dist.drawing import scorers, writing
from ladd_dist.drawing.given import table_pairs, table_pictures
from ladd_dist.drawing.pictures import fit_picture, open_picture, pixels_of, save_png
from ladd_dist.drawing.ranking import rank_pairs
from ladd_dist.errors import LaddError
from ladd_dist.measuring.scans_table import write_table as write_scans
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.registry import family_of
from ladd_dist.supervision.signals import Signals

# Schema


@pytest.mark.parametrize("bucket", BUCKETS)
def test_what_is_encoded_is_decoded_to_the_same_picture(bucket: str) -> None:
    rows, columns = LAYOUTS[bucket]
    pictures = render(load_part("judge").images[: 8 * rows * columns].view(8, rows * columns, 8, 8), bucket)
    family = family_of(TEACHER)
    latents = family.encoder(TEACHER, ALONE.device).encode(pictures)
    assert latents.dtype == torch.float32
    assert latents.shape == (8, *LatentSpace.of(TEACHER).shape(Bucket.parse(bucket)))
    assert 0.8 < latents.std() < 1.2 and latents.mean().abs() < 0.2, "the backbone takes latents of deviation 1"
    again = family.decoder(TEACHER, ALONE.device).decode(latents)
    assert (again - pictures).square().mean() < 0.006 < 0.03 < pictures.var()


def test_a_batch_of_pairs_has_the_rejected_latents_wherever_it_goes(dataset: Path) -> None:
    rows = [row for row in rows_of(dataset) if row["bucket"] == "32x64"][:3]
    other = rows[::-1]
    assert collate(rows).rejected is None
    batch = collate([row | {REJECTED: twin["latent"]} for row, twin in zip(rows, other, strict=True)])
    assert batch.rejected is not None
    assert torch.equal(batch.rejected, torch.stack([from_bits(row["latent"].copy()) for row in other]))
    moved = batch.to(torch.device("meta"))
    assert moved.rejected is not None and moved.rejected.is_meta and moved.latents.is_meta


def test_a_method_that_needs_pairs_is_told_so_before_anything_is_loaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ladd, "FIELDS", (*Ladd.FIELDS, REJECTED))
    config = tiny_config(tmp_path, dataset)
    with pytest.raises(LaddError) as refused:
        check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)
    line = str(refused.value)
    assert line.startswith(f"method.name=ladd needs preference pairs, but data.path={dataset} holds latents")
    assert line.endswith("make pairs with launchers/pairs.py, and set data.path to them")


# From a table


def strokes(bucket: str, count: int) -> tuple[Tensor, Tensor]:
    """Digits with thick strokes, and the same ones with thin strokes: ``(count, 3, H, W)``."""
    cells = LAYOUTS[bucket][0] * LAYOUTS[bucket][1]
    scans = load_part("judge").images[: count * cells].view(count, cells, 8, 8)
    pictures = render(scans, bucket)
    return F.max_pool2d(pictures, 3, 1, 1), -F.max_pool2d(-pictures, 3, 1, 1)


COUNT = 4
"""Pairs of each bucket in `pictures`."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures BUCKET-NUMBER-thick.png and -thin.png; those of one bucket twice its size."""
    folder = tmp_path_factory.mktemp("pictures")
    for bucket in BUCKETS:
        for name, drawn in zip(("thick", "thin"), strokes(bucket, COUNT), strict=True):
            for number, picture in enumerate(drawn):
                if bucket == "64x32":
                    picture = picture.repeat_interleave(2, 1).repeat_interleave(2, 2)
                save_png(picture, folder / f"{bucket}-{number}-{name}.png")
    return folder


def named_rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"{bucket} {n}", "chosen": f"{bucket}-{n}-thick.png", "rejected": f"{bucket}-{n}-thin.png"}
        for n in range(COUNT)
        for bucket in BUCKETS
    ]


def labelled_rows(folder: Path) -> list[dict[str, Any]]:
    """As Pick-a-Pic has them: the preferred picture first or second, a tie after every third row, more columns."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(named_rows()):
        pair = [row["chosen"], row["rejected"]][:: 1 if number % 2 else -1]
        first, second = (
            "data:image/png;base64," + base64.b64encode((folder / p).read_bytes()).decode() for p in pair
        )
        label = {"label_0": number % 2, "label_1": 1 - number % 2}
        rows.append({"caption": row["prompt"], "jpg_0": first, "jpg_1": second, **label, "ranking_id": number})
        if number % 3 == 2:
            rows.append(rows[-1] | {"label_0": 0.5, "label_1": 0.5})
    return rows


def write_table(path: Path, rows: list[Any]) -> Path:
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def table_config(tmp_path: Path, *overrides: str) -> Config:
    return tiny_config(tmp_path / "run", tmp_path / "pairs", "synthesis.part_samples=3", *overrides)


KINDS = {
    "plain.jsonl": lambda folder: named_rows(),
    "plain.csv": lambda folder: named_rows(),
    "pickapic.jsonl": labelled_rows,
    "pickapic.csv": labelled_rows,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_table_becomes_batches_of_its_pictures(
    pictures: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_table(pictures / name, KINDS[name](pictures))
    config = table_config(tmp_path, f"train.global_batch={COUNT}", f"train.micro_batch={COUNT}")
    with caplog.at_level(logging.INFO, "ladd_dist"):
        manifest = table_pairs(config, table, ALONE)
    ties = "; 4 ties left out" if "pickapic" in name else ""
    assert f"12 pairs, 4 to 32x32, 4 to 32x64, 4 to 64x32{ties}" in caplog.text and "enlarged" not in caplog.text
    assert manifest.counts == dict.fromkeys(BUCKETS, COUNT)
    made = manifest.provenance
    assert (made.pairs, made.guidance, made.steps, made.scheduler) == (f"table:{name}", 0, 0, {})
    rows = rows_of(tmp_path / "pairs")
    assert {row["prompt"] for row in rows} == {row["prompt"] for row in named_rows()}
    assert {(row["seed"], row["guidance"], row["steps"], row["teacher"]) for row in rows} == {
        (0, 0.0, 0, fingerprint(TEACHER))
    }
    check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)
    assert (
        f"holds preference pairs (table:{name}): method.name=ladd trains on the chosen pictures alone" in caplog.text
    )
    batches = iter(LatentReader(config, manifest, ALONE))
    decode = family_of(TEACHER).decoder(TEACHER, ALONE.device).decode
    for batch, *rest in itertools.islice(batches, len(BUCKETS)):
        assert not rest and batch.rejected is not None
        order = [int(next(row["prompt"] for row in rows if row["id"] == number)[-1]) for number in batch.ids]
        for latents, wanted in zip((batch.latents, batch.rejected), strokes(batch.bucket, COUNT), strict=True):
            assert (decode(latents) - wanted[order]).square().mean() < 0.006 < 0.03 < wanted.var()


def row(**changes: Any) -> dict[str, Any]:
    whole = {"prompt": "a one", "chosen": "32x32-0-thick.png", "rejected": "32x32-0-thin.png"}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def labelled(label: Any) -> dict[str, Any]:
    return row(chosen=None, rejected=None, jpg_0="32x32-0-thick.png", jpg_1="32x32-0-thin.png", label_0=label)


UNUSABLE = {
    "no object": ([1, 2], "it is not a JSON object"),
    "no prompt": (row(prompt=None), "it has no caption"),
    "empty prompt": (row(prompt=""), "it has no prompt"),
    "white prompt": (row(prompt=" "), "it has no prompt"),
    "number for a prompt": (row(prompt=5), "its prompt is not text"),
    "NUL in a prompt": (row(prompt="a\0b"), "the prompt holds a NUL character"),
    "no rejected picture": (row(rejected=None), "it has no rejected"),
    "no pictures": (row(chosen=None, rejected=None), "it has no jpg_0"),
    "no label": (labelled(None), "its label_0 is None, not 1, 0 or 0.5"),
    "unknown label": (labelled(0.7), "its label_0 is 0.7, not 1, 0 or 0.5"),
    "a word for a label": (labelled("left"), "its label_0 is 'left', not 1, 0 or 0.5"),
    "a huge label": (labelled(10**400), "its label_0 is 10000000000000000000, not 1, 0 or 0.5"),
    "missing picture": (row(chosen="none.png"), "chosen: picture {folder}/none.png is missing"),
    "no picture": (row(rejected="notes.png"), "rejected: picture {folder}/notes.png cannot be read (cannot identify"),
    "cut picture": (row(rejected="cut.png"), "rejected: picture {folder}/cut.png cannot be read ("),
    "16 bits": (row(chosen="deep.png"), "chosen: picture {folder}/deep.png cannot be read (its mode is I;16, not"),
    "cut content": (row(chosen="data:image/png;base64,iVBORw0"), "its chosen is not of the form data:image/jpeg;"),
    "content of no picture": (row(chosen="data:image/png;base64,AAAA"), "chosen: a picture cannot be read (cannot"),
}


@pytest.mark.parametrize(("bad", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_rows_that_cannot_be_used_are_named_before_anything_is_loaded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Any, says: str
) -> None:
    monkeypatch.setattr(given_pairs, "Pipeline", lambda *_: pytest.fail("networks were loaded"))
    (pictures / "notes.png").write_text("notes")
    whole = (pictures / "32x32-0-thin.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(pictures / "deep.png")
    table = write_table(pictures / "bad.jsonl", [row(), bad, row(), *[bad] * 6])
    with pytest.raises(LaddError) as refused:
        table_pairs(table_config(tmp_path), table, ALONE)
    line = str(refused.value)
    start = f"{table}: 7 of 9 rows cannot be used: 2, 4, 5, 6, 7, ... (row 2: "
    assert line.startswith(start + says.format(folder=pictures)) and "\n" not in line
    assert line.endswith("): correct them, or take them out")
    assert not (tmp_path / "pairs").exists()


TABLES = {
    "parquet": (
        "p.parquet",
        b"PAR1",
        "p.parquet: .parquet is not read, write it as .jsonl with its pictures as files",
    ),
    "other": ("p.xlsx", b"", "p.xlsx ends in '.xlsx': a table of pictures must be a .jsonl or a .csv"),
    "bytes": ("p.csv", b"prompt\n\xff\n", "p.csv is not UTF-8 text"),
    "quotes": ("p.csv", b'prompt,chosen,rejected\n"a"b,c,d\n', "p.csv is not CSV ("),
    "empty": ("p.jsonl", b"\n", "p.jsonl holds no pairs"),
    "header": ("p.csv", b"prompt,chosen,rejected\n", "p.csv holds no pairs"),
}


@pytest.mark.parametrize(("name", "content", "says"), TABLES.values(), ids=TABLES)
def test_tables_that_are_none_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LaddError) as refused:
        table_pairs(table_config(tmp_path), tmp_path / name, ALONE)
    assert str(refused.value).startswith(f"{tmp_path}/{says}") and "\n" not in str(refused.value)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())
PICTURE = st.sampled_from(["a", "data:image/png;base64,AA==", "data:x"]) | VALUES
LABEL = st.sampled_from([0, 0.5, 1, "0.5", 10**400]) | VALUES
JUDGED = dict.fromkeys(("caption", "jpg_0", "jpg_1"), st.just("a")) | {"label_0": LABEL}
LABELLED = dict.fromkeys(JUDGED, PICTURE)
PLAIN = {"prompt": PICTURE, "chosen": PICTURE, "rejected": PICTURE}
ROWS = VALUES | st.fixed_dictionaries(JUDGED) | st.fixed_dictionaries({}, optional=PLAIN | LABELLED)


@given(st.lists(ROWS, max_size=5))
def test_every_row_is_a_pair_a_tie_or_named(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    table = read_pairs(write_table(tmp_path_factory.getbasetemp() / "any.jsonl", rows))
    numbers = [row.number for row in table.rows] + list(table.problems)
    assert len(numbers) + table.ties == len(rows) and len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(1, len(rows) + 1))
    assert not any("\n" in problem for problem in table.problems.values())


def test_a_missing_table_and_one_of_ties_alone_are_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(LaddError, match=r"table .*none\.csv cannot be read \(No such file"):
        table_pairs(table_config(tmp_path), tmp_path / "none.csv", ALONE)
    table = write_table(pictures / "ties.csv", [labelled(0.5)] * 3)
    with pytest.raises(LaddError, match=r"ties\.csv holds no pairs: all 3 rows are ties"):
        table_pairs(table_config(tmp_path), table, ALONE)


def test_other_pictures_under_the_same_names_are_another_dataset(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    table = write_table(folder / "p.jsonl", named_rows()[::3][:3])
    table_pairs(table_config(tmp_path), table, ALONE)
    save_png(torch.zeros(3, 32, 16), folder / "32x32-0-thin.png")
    save_png(torch.zeros(3, 16, 32), folder / "32x32-1-thin.png")
    with pytest.raises(LaddError, match=r"holds latents made with prompts=\w+, but this run has prompts="):
        table_pairs(table_config(tmp_path), table, ALONE)
    assert "2 of the pairs have a picture smaller than its bucket, which is enlarged" in caplog.text


# Pictures without preferences


def test_single_pictures_become_latents_without_a_rejected_one(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": row["prompt"], "picture": row["chosen"]} for row in named_rows()]
    table = write_table(pictures / "single.jsonl", rows)
    config = table_config(
        tmp_path, f"train.global_batch={COUNT}", f"train.micro_batch={COUNT}", f"data.path={tmp_path / 'one'}"
    )
    overrides = tiny_overrides(tmp_path / "run", tmp_path / "one")
    done = launch(["encode.py", "--config", TINY, "--pictures", str(table), *overrides])
    assert done.returncode == 0 and "12 pictures, 4 to 32x32, 4 to 32x64, 4 to 64x32" in done.stderr, done.stderr
    manifest = check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)
    assert manifest.provenance.pairs is None and manifest.counts == dict.fromkeys(BUCKETS, COUNT)
    assert "holds latents of given pictures: method.name=ladd trains on them, though the teacher did" in caplog.text
    latents = {row["prompt"]: row["latent"] for row in rows_of(tmp_path / "one")}
    table_pairs(table_config(tmp_path), write_table(pictures / "p.csv", named_rows()), ALONE)
    for row in rows_of(tmp_path / "pairs"):
        assert np.array_equal(row["latent"], latents[row["prompt"]])
    with pytest.raises(LaddError, match=r"1 of 1 rows cannot be used: 1 \(row 1: it has no picture\)"):
        table_pictures(config, write_table(pictures / "wrong.jsonl", named_rows()[:1]), ALONE)


def test_the_scans_that_come_along_are_a_table_of_their_prompts(tmp_path: Path) -> None:
    table = read_pictures(write_scans(tmp_path, images_per_prompt=1))
    assert not table.problems and [row.prompt for row in table.rows] == [
        json.loads(line)["prompt"] for line in TRAIN_PROMPTS.read_text().splitlines()
    ]
    singles = [row for row in table.rows if len(digits_in(row.prompt)) == 1]
    pictures = torch.stack([pixels_of(open_picture(row.pictures["picture"])) for row in singles])
    right = DigitJudge().reads_prompt(pictures, [row.prompt for row in singles])
    assert right.float().mean() > 0.8  # by chance 0.1; the judge has not seen these scans


# Buckets

SIDES = st.integers(1, 4000)
SOME_BUCKETS = st.lists(st.builds(Bucket, SIDES, SIDES), min_size=1, max_size=8)


@given(SIDES, SIDES, SOME_BUCKETS, st.integers(1, 50))
def test_the_nearest_bucket_is_by_aspect_ratio_alone(
    height: int, width: int, buckets: list[Bucket], scale: int
) -> None:
    def factor(bucket: Bucket) -> Fraction:
        ratio = Fraction(bucket.height * width, bucket.width * height)
        return max(ratio, 1 / ratio)

    chosen = nearest(height, width, buckets)
    assert float(factor(chosen)) <= min(map(float, map(factor, buckets))) * (1 + 1e-12)
    assert nearest(height * scale, width * scale, buckets) == chosen


@settings(max_examples=50)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([Bucket(32, 64), Bucket(32, 32), Bucket(48, 32)]))
def test_pictures_are_cut_at_the_centre_and_keep_their_shapes(height: int, width: int, bucket: Bucket) -> None:
    """Of a picture whose red tells the row and whose green tells the column, from 0 to 1."""
    rows = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    columns = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    source = np.stack([rows, columns, np.zeros_like(rows)], -1).round().astype(np.uint8)
    fitted = fit_picture(Image.fromarray(source), bucket)
    assert fitted.shape == (3, bucket.height, bucket.width) and fitted.dtype == torch.float32
    assert fitted.min() >= 0 and fitted.max() <= 1
    scale = max(bucket.height / height, bucket.width / width)
    for colour, side, whole in ((0, bucket.height, height), (1, bucket.width, width)):
        line = fitted[colour].mean(1 - colour)
        assert abs(line[0] + line[-1] - 1) < 0.02, "the same is cut off on both sides"
        kept = min(1.0, side / scale / whole)
        # Pixels are as wide as 1 / whole before and 1 / side after; the filter reaches over some at the edges.
        assert abs((line[-1] - line[0]) - kept) < 3 * (1 / whole + kept / side) + 0.02


def test_a_picture_of_its_buckets_size_stays_as_it_is(pictures: Path) -> None:
    thick, _ = strokes("32x64", 1)
    fitted = fit_picture(open_picture(pictures / "32x64-0-thick.png"), Bucket(32, 64))
    assert torch.equal(fitted, (thick[0] * 255).round() / 255)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    picture = Image.new("L", (64, 32))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    opened = open_picture(tmp_path / "turned.jpg")
    assert (opened.mode, opened.size) == ("RGB", (32, 64))


# Scorers


def test_stroke_is_the_width_of_strokes() -> None:
    cells = render(load_part("judge").images[:, None], "32x32")
    widths = stroke([], cells)
    assert (stroke([], F.max_pool2d(cells, 3, 1, 1)) > widths + 0.5).all(), "every side has grown by a pixel"
    assert (stroke([], -F.max_pool2d(-cells, 3, 1, 1)) < widths - 0.5).all()
    torch.testing.assert_close(stroke([], cells / 2), widths, rtol=1e-4, atol=0)
    torch.testing.assert_close(stroke([], cells.repeat(1, 1, 1, 2)), widths, rtol=1e-2, atol=0)
    assert stroke([], torch.zeros(1, 3, 8, 8)).tolist() == [0]
    bar = torch.zeros(1, 3, 104, 104)
    bar[:, :, 2:102, 50:56] = 1
    assert stroke([], bar).item() == pytest.approx(6, rel=0.1)


def test_scorers_are_found_by_name_or_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_SCORERS", {})
    scorers.register("mine", stroke)
    assert scorers.scorer_of("mine") is scorers.scorer_of("stroke") is stroke
    assert scorers.scorer_of("ladd_dist.digits.stroke:stroke") is stroke
    for name in ("mine", "stroke", "a:b"):
        with pytest.raises(ValueError, match=f"cannot be registered as {name}"):
            scorers.register(name, stroke)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken_scorer.py").write_text("import torch\nnonsense\n")
    (tmp_path / "my_other_scorer.py").write_text("import my_absent_library\n")
    for name, says in {
        "thick": "scorer thick is unknown: use stroke, mine, clip:FOLDER or MODULE:FUNCTION",
        "stroke:": "scorer stroke: is unknown",
        "my_absent:f": "there is no module my_absent, add its folder to PYTHONPATH or install it",
        "my_other_scorer:f": "there is no module my_absent_library",
        "my_broken_scorer:f": r"my_broken_scorer cannot be imported \(NameError: name 'nonsense' is not defined\)",
        "ladd_dist.digits.stroke:f": "ladd_dist.digits.stroke has no function f",
        ".stroke:f": r"\.stroke cannot be imported \(TypeError",
    }.items():
        with pytest.raises(LaddError, match=says) as refused:
            scorers.scorer_of(name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([1.0, 2.0], "scorer mine gave list for 2 pictures"),
        (torch.zeros(2, 1), r"scorer mine gave a tensor of shape \(2, 1\) for 2 pictures: it must give a number for"),
        (torch.tensor([1, math.nan]), "scorer mine gave numbers that are not finite"),
    ],
)
def test_what_is_no_score_is_refused(scores: Any, says: str) -> None:
    with pytest.raises(LaddError, match=says):
        scorers.score("mine", lambda *_: scores, ["a", "b"], torch.zeros(2, 3, 8, 8))


# The teacher's own, ranked

HEARD: list[tuple[str, float]] = []
"""What `hearing` was asked and has said."""


def hearing(prompts: list[str], pictures: Tensor) -> Tensor:
    assert pictures.shape[1] == 3 and pictures.min() >= 0 and pictures.max() <= 1
    scores = stroke(prompts, pictures)
    HEARD.extend(zip(prompts, scores.tolist(), strict=True))
    return scores


def half_blind(prompts: list[str], pictures: Tensor) -> Tensor:
    """Sees no difference where two digits lie side by side, nor any four."""
    sees = [pictures.shape[2:] != (32, 64) and "four" not in prompt for prompt in prompts]
    return stroke(prompts, pictures) * torch.tensor(sees)


PICTURES = 3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five prompts of each bucket."""
    folder = tmp_path_factory.mktemp("prompts")
    write_prompts(folder / "prompts.jsonl", 5)
    return folder


def rank_config(prompts: Path, tmp_path: Path, *overrides: str) -> Config:
    config = [f"synthesis.prompts={prompts / 'prompts.jsonl'}", "synthesis.part_samples=3", *overrides]
    return tiny_config(tmp_path / "run", tmp_path / "pairs", *config)


@pytest.mark.parametrize("batch", [1, 6])
def test_the_best_of_a_prompts_pictures_is_paired_with_the_worst(prompts: Path, tmp_path: Path, batch: int) -> None:
    """Whether a prompt's pictures are drawn together or one by one."""
    HEARD.clear()
    manifest = rank_pairs(
        rank_config(prompts, tmp_path, f"synthesis.batch={batch}"), "test_pairs:hearing", PICTURES, ALONE
    )
    made = manifest.provenance
    assert manifest.counts == dict.fromkeys(BUCKETS, 5)
    assert (made.pairs, made.images_per_prompt, made.guidance) == ("rank:test_pairs:hearing", PICTURES, 1.5)
    decode = family_of(TEACHER).decoder(TEACHER, ALONE.device).decode
    rows = rows_of(tmp_path / "pairs")
    entries = read_prompts(prompts / "prompts.jsonl", BUCKETS)
    assert [(row["id"], row["prompt"], row["bucket"]) for row in rows] == [
        (entry.id, entry.prompt, entry.bucket.name) for entry in entries
    ]
    assert len(HEARD) == PICTURES * len(rows)
    for first in range(0, len(HEARD), PICTURES):
        (prompt,) = {prompt for prompt, _ in HEARD[first : first + PICTURES]}
        scores = [score for _, score in HEARD[first : first + PICTURES]]
        found = [row for row in rows if row["prompt"] == prompt]
        drawn = [[stroke([], decode(from_bits(row[key].copy())[None])).item() for row in found] for key in PAIR]
        best, worst = (
            min(abs(score - end) for score in side) for side, end in zip(drawn, _ends(scores), strict=True)
        )
        assert max(best, worst) < 0.02 * (max(scores) - min(scores)) + 0.02  # latents are rounded to bf16
        seeds = [image_seed(0, "pairs", row["id"] * PICTURES + scores.index(max(scores))) for row in found]
        assert any(row["seed"] == seed for row, seed in zip(found, seeds, strict=True))


PAIR = ("latent", REJECTED)


def _ends(scores: list[float]) -> tuple[float, float]:
    return max(scores), min(scores)


def test_prompts_whose_pictures_score_the_same_make_no_pair(
    prompts: Path, ranked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = read_prompts(prompts / "prompts.jsonl", BUCKETS)
    told = [entry for entry in entries if entry.bucket.name != "32x64" and "four" not in entry.prompt]
    assert 0 < len(told) < 10 and [row["id"] for row in rows_of(ranked)] == [entry.id for entry in told]
    manifest = Manifest.read(ranked)
    assert manifest.counts == Counter(entry.bucket.name for entry in told), "a bucket of ties is none"
    config = rank_config(prompts, ranked.parent, "train.global_batch=2", "train.micro_batch=2")
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(ranked)})})
    check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)
    assert "(rank:test_pairs:half_blind): method.name=ladd trains on the chosen pictures alone" in caplog.text
    (batch,) = next(iter(LatentReader(config, manifest, ALONE)))
    assert batch.rejected is not None and batch.rejected.shape == batch.latents.shape


def test_nothing_but_ties_is_no_dataset(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scorers._SCORERS, "same", lambda prompts, pictures: torch.ones(len(pictures)))
    with pytest.raises(LaddError, match="all 15 prompts are ties, of which no dataset is made"):
        rank_pairs(rank_config(prompts, tmp_path, "synthesis.steps=1"), "same", 2, ALONE)
    assert not (tmp_path / "pairs" / "manifest.json").exists()


def test_one_picture_of_a_prompt_is_no_choice(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(LaddError, match="--pictures 1 leaves nothing to choose from: draw 2 or more"):
        rank_pairs(rank_config(prompts, tmp_path), "stroke", 1, ALONE)


@pytest.fixture(scope="module")
def ranked(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs by `half_blind`, drawn in one go on one rank."""
    folder = tmp_path_factory.mktemp("ranked")
    rank_pairs(rank_config(prompts, folder), "test_pairs:half_blind", PICTURES, ALONE)
    return folder / "pairs"


# On several ranks, and killed


def _make(world: World, config: Config, table: Path | None, rows: int | None = None) -> None:
    """Pairs of a table, or ranked; killed where the next of so many samples would be written."""
    write, written = writing.MDSWriter.write, iter(range(rows or 0))

    def write_or_die(writer: Any, sample: dict) -> None:
        if rows is not None and next(written, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        write(writer, sample)

    writing.MDSWriter.write = write_or_die  # type: ignore[method-assign]
    try:
        if table:
            table_pairs(config, table, world)
        else:
            rank_pairs(config, "test_pairs:half_blind", PICTURES, world)
    finally:
        writing.MDSWriter.write = write  # type: ignore[method-assign]


def _make_both(world: World, config: Config, table: Path, table_config: Config) -> None:
    _make(world, config, None)
    _make(world, table_config, table)


def test_pairs_killed_on_the_way_and_made_on_other_ranks_end_the_same(
    pictures: Path, prompts: Path, ranked: Path, tmp_path: Path
) -> None:
    table = write_table(pictures / "killed.csv", named_rows())
    _make(ALONE, table_config(tmp_path / "whole"), table)
    ranking, encoding = rank_config(prompts, tmp_path / "ranked"), table_config(tmp_path / "table")
    assert join(start_ranks(_make, ranking, None, 1, size=2)) == [-signal.SIGKILL] * 2
    assert join(start_ranks(_make, encoding, table, 4)) == [-signal.SIGKILL]
    for folder in ("ranked", "table"):
        assert not (tmp_path / folder / "pairs" / "manifest.json").exists()
    run_ranks(_make_both, ranking, table, encoding, size=2)
    assert tree_of(tmp_path / "ranked" / "pairs") == tree_of(ranked)
    assert tree_of(tmp_path / "table" / "pairs") == tree_of(tmp_path / "whole" / "pairs")


def test_a_manifest_and_an_index_that_disagree_on_pairs_are_named(pictures: Path, tmp_path: Path) -> None:
    config = table_config(tmp_path, "train.global_batch=1", "train.micro_batch=1")
    manifest = table_pairs(config, write_table(pictures / "one.csv", named_rows()[:1]), ALONE)
    replace(manifest, provenance=replace(manifest.provenance, pairs=None)).write(tmp_path / "pairs")
    with pytest.raises(LaddError, match=r"index\.json is damaged \(its column rejected is ndarray:.*, not None\)"):
        check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)


def test_a_lost_sample_of_a_finished_part_is_noticed_where_there_can_be_no_ties(
    pictures: Path, tmp_path: Path
) -> None:
    table = write_table(pictures / "whole.csv", named_rows())
    table_pairs(table_config(tmp_path), table, ALONE)
    index = tmp_path / "pairs/32x32/part-00001/index.json"
    index.write_text(json.dumps({"shards": [], "version": 2}))
    with pytest.raises(LaddError, match=r"part-00001/index\.json is damaged \(it has 0 samples, not 1\)"):
        table_pairs(table_config(tmp_path), table, ALONE)


# As documented

PYTHON = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/pairs.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_documented_example_makes_twenty_pairs_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ladd_dist", "configs", "launchers"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[0], {})
    command = documented("docs/pairs.md", "table")
    words = [word.replace("data.path=", f"data.path={tmp_path}/") for word in command.words[2:]]
    done = launch(
        ["pairs.py", *words, f"run_dir={tmp_path / 'run'}", "--pairs", str(tmp_path / "runs/pairs/pairs.jsonl")]
    )
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: 20 pairs, 20 to 32x32" in done.stderr
    given_ones = rows_of(tmp_path / "runs/pairs/given")
    config = table_config(
        tmp_path, "synthesis.prompts=runs/pairs/prompts.txt", "synthesis.buckets=[32x32]", "synthesis.part_samples=20"
    )
    rank_pairs(config, "stroke", 4, ALONE)
    drawn = rows_of(tmp_path / "pairs")
    assert len(drawn) == len(given_ones) == 20
    decode = family_of(TEACHER).decoder(TEACHER, ALONE.device).decode
    for rows in (given_ones, drawn):
        latents = [torch.stack([from_bits(row[key].copy()) for row in rows]) for key in PAIR]
        better, worse = (stroke([], decode(each)) for each in latents)
        assert (better > worse).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table"], "'table' needs --pairs: see --help"),
        (["rank"], "'rank' needs --scorer: see --help"),
        (["table", "--pairs", "p.csv", "--pictures", "3"], "--pictures is for 'rank': leave it out of 'table'"),
        (["rank", "--scorer", "stroke", "--pairs", "p.csv"], "--pairs is for 'table': leave it out of 'rank'"),
    ],
)
def test_flags_of_the_other_kind_are_refused(words: list[str], says: str) -> None:
    launcher = runpy.run_path("launchers/pairs.py")
    args = launcher["command_line"]().parse_intermixed_args(["--config", TINY, *words, "seed=1"])
    assert (args.kind, args.overrides) == (words[0], ["seed=1"])
    with pytest.raises(LaddError) as refused:
        launcher["main"](Launch(args, tiny_config(Path("run"), Path("data")), ALONE), Signals())
    assert str(refused.value) == says
