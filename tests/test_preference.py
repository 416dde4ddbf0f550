"""The study of preference tuning: from a distilled student and pairs to numbers and a figure, resumed."""

import json
from pathlib import Path

import pytest
from conftest import ALONE, tiny_config
from latents import write_pairs
from PIL import Image

from ladd_dist.measuring import preference
from ladd_dist.training.trainer import Trainer


def test_it_trains_scores_and_draws_what_is_not_there_yet(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    Trainer(tiny_config(student, dataset, "train.iterations=2"), ALONE).run()
    pairs = write_pairs(dataset, tmp_path / "pairs")
    words = ["--student", student, "--pairs", pairs, "--out", out, "--ranks", 2, 4, "--seeds", 1, "--samples", 6]
    words += ["train.iterations=1", "train.global_batch=8", "train.log_every=1", "train.checkpoint_every=1"]
    monkeypatch.setattr("sys.argv", ["preference", *map(str, words)])
    preference.main()
    result = json.loads((out / "preference.json").read_text())
    assert [(row["base"], row["rank"], row["seed"]) for row in result["adapters"]] == [
        ("teacher", 2, 0),
        ("teacher", 4, 0),
        ("student", 4, 0),
    ]
    for scores in (result["plain"], *(row["scores"] for row in result["adapters"])):
        assert [score["steps"] for score in scores] == [4, 1]
        assert all(0 < score["stroke"] < 32 and 0 <= score["read"] <= 1 for score in scores)
    with Image.open(out / "preference.png") as picture:
        assert min(picture.size) > 500

    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    preference.main()
    assert json.loads((out / "preference.json").read_text()) == result
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
