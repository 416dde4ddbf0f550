"""What an export's card takes from an evaluation of the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_report import make_run, results

from ladd_dist.config import load
from ladd_dist.models.lora import Lora
from ladd_dist.report.scores import scores_of

LORA = Lora("runs/dpo/step-9", None, None, {}, {}, {})


def checkpoint(name: str, digest: str = "00ff") -> Any:
    return SimpleNamespace(path=Path("anywhere", name), digest=digest)


def evaluated(folder: Path, **others: Any) -> Path:
    run = make_run(folder)
    (run / "evaluation" / "results.json").write_text(json.dumps(results() | others))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(tmp_path_factory.mktemp("scores") / "run")


def test_scores_and_pictures_are_those_of_the_evaluation(run: Path) -> None:
    scores = scores_of(load(run / "config.yaml"), checkpoint("step-00001000"), "ema", [])
    assert scores is not None
    assert "\n| student, 4 steps | 0.8115 | 0.399 ± 0.25 | 0.21 ± 0.25 | 99.1% |\n" in scores.text
    assert "features of digits, 1,000 pictures" in scores.text and scores.text.startswith(
        "In 4 steps the student comes"
    )
    assert min(scores.pictures.size) > 300


@pytest.mark.parametrize(
    ("name", "digest", "weights", "loras", "wanted"),
    [
        ("step-00000900", "00ff", "ema", [], "step-00000900 (00ff), ema weights"),
        ("step-00001000", "abcd", "ema", [], "step-00001000 (abcd), ema weights"),
        ("step-00001000", "00ff", "student", [], "step-00001000 (00ff), student weights"),
        ("step-00001000", "00ff", "ema", [(LORA, 0.5)], "step-00001000 (00ff), ema weights, runs/dpo/step-9 x 0.5"),
    ],
)
def test_an_evaluation_of_other_weights_is_not_taken(
    run: Path, caplog: pytest.LogCaptureFixture, name: str, digest: str, weights: Any, loras: list, wanted: str
) -> None:
    assert scores_of(load(run / "config.yaml"), checkpoint(name, digest), weights, loras) is None
    assert (
        f"evaluation is of step-00001000 (00ff), ema weights and not of {wanted}, so the model card has no"
        in caplog.text
    )


def test_adapters_that_were_evaluated_are_told_apart(tmp_path: Path) -> None:
    config = load(evaluated(tmp_path / "run", adapters=["runs/dpo/step-9 x 1"]) / "config.yaml")
    assert scores_of(config, checkpoint("step-00001000"), "ema", [(LORA, 1.0)]) is not None
    for loras in ([], [(LORA, 0.5)], [(replace(LORA, name="other"), 1.0)]):
        assert scores_of(config, checkpoint("step-00001000"), "ema", loras) is None


def test_without_an_evaluation_there_are_no_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load("configs/tiny_cpu.yaml", [f"run_dir={tmp_path}"])
    assert scores_of(config, checkpoint("step-00001000"), "ema", []) is None
    assert f"{tmp_path}/evaluation holds no evaluation, so the model card has no scores: run" in caplog.text
