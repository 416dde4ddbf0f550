"""The shipped configurations of one GPU: what they need fits, and a student of adapters lives as any other does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ALONE, ROOT, TINY, tiny_overrides
from test_dry_run import RUNNER, stand_in  # noqa: F401 - a fixture
from test_eight_bit import FOLDER as TORCHAO

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.config import Config, load
from ladd_dist.config.yaml import read_yaml
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.models.start import Start
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.dry_run.card import fake_card
from ladd_dist.planning.dry_run.cuda import environment
from ladd_dist.planning.needs import needs
from ladd_dist.planning.plan import WORKSPACE, largest_bucket
from ladd_dist.training.trainer import Trainer

LARGE = "teacher.path=tests/gpu/sd35_large"
ONE_GPU = {"141gb": "H200", "80gb": "H100", "48gb": "L40S"}
SPARE = 0.05
"""Of a card's memory that is left over, and the workspace of libraries beside what tensors take."""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "card"), ONE_GPU.items())
def test_the_8b_step_fits_by_the_planner(size: str, card: str) -> None:
    config = load(f"configs/sd35_large_{size}.yaml", [LARGE])
    needed = needs(
        config, Costs(config, largest_bucket(config), CARDS[card].device), 1, config.micro_batch(1), WORKSPACE
    )
    assert 0.7 < needed.total / CARDS[card].memory < 1 - SPARE


@pytest.mark.slow
@pytest.mark.parametrize(("size", "card"), ONE_GPU.items())
def test_the_8b_step_fits_as_a_dry_run_sees_it(size: str, card: str, stand_in: Path) -> None:  # noqa: F811
    """Every tensor of start and iteration, in the largest bucket."""
    if not TORCHAO.is_dir():
        pytest.skip("torchao is not there: `make test` installs it")
    case = {"config": f"configs/sd35_large_{size}.yaml", "overrides": [LARGE], "size": 1, "buckets": ["1024x1024"]}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps({**case, "line": "pass"}), capture_output=True, text=True,
        cwd=ROOT, env=environment(fake_card(card), stand_in) | {"PYTHONPATH": os.fspath(TORCHAO)}, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.get("error") is None, seen["error"]
    assert max(seen["peaks"].values()) + WORKSPACE < (1 - SPARE) * CARDS[card].memory


def adapted(run_dir: Path, data: Path, *overrides: str) -> Config:
    """Of the configuration of 48 GB what is peculiar to it, on the networks of the digits."""
    own = load("configs/sd35_large_48gb.yaml")
    assert own.student_optimizer.state == "fp32", "which needs no torchao"
    keys = [
        f"engine={own.engine}", f"teacher.placement={own.teacher.placement}", "student.lora.rank=4",
        f"student.activation_checkpointing={str(own.student.activation_checkpointing).lower()}",
        f"method.fake_pass={own.method.fake_pass}", f"train.ema_device={own.train.ema_device}",  # type: ignore[union-attr]
        f"train.precision={own.train.precision}", "train.micro_batch=4",
    ]  # fmt: skip
    return load(TINY, [*tiny_overrides(run_dir, data), *keys, "train.iterations=4", *overrides])


@pytest.mark.slow
def test_a_student_of_adapters_resumes_is_evaluated_and_exported(tmp_path: Path, dataset: Path) -> None:
    """Two iterations and two more are four; what is drawn from is the base with what was learned added."""
    whole, halves = (adapted(tmp_path / name, dataset) for name in ("whole", "halves"))
    Trainer(whole, ALONE).run()
    first = Trainer(halves, ALONE)
    assert next(done for done in first.iterations() if done == 2)
    first.writer.wait()
    Trainer(halves, ALONE).run()
    assert compare_runs(tmp_path / "whole", tmp_path / "halves", steps=4, tolerance=0).accepted
    saved = open_newest(halves.run_dir, ALONE)
    assert saved is not None and all(".lora_" in name for name in saved.network("student"))

    assert evaluate(halves, ALONE, None, "ema").checkpoint == saved.path.name
    example = PromptEntry(0, "a seven next to a two", Bucket(32, 64))
    folder = export(halves, saved, tmp_path / "export", "ema", torch.float32, example)
    plain = halves.model_copy(
        update={"student": halves.student.model_copy(update={"lora": None, "path": str(folder)})}
    )
    exported, base = (Start.of(each).load(torch.float32) for each in (plain, load(TINY)))
    moved = {n for (n, a), b in zip(exported.named_parameters(), base.parameters(), strict=True) if not a.equal(b)}
    assert moved and all(name.endswith(".weight") for name in moved)


def test_a_file_says_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    for size in ONE_GPU:
        assert len(Path(f"configs/sd35_large_{size}.yaml").read_text().splitlines()) <= 25
        assert "extends" in read_yaml(Path(f"configs/sd35_large_{size}.yaml"))
    large, own = load("configs/sd35_large.yaml"), load("configs/sd35_large_48gb.yaml")
    assert (own.student.lora and own.student.lora.rank, own.train.micro_batch) == (192, 1)
    assert (own.synthesis, own.head_optimizer, own.data) == (large.synthesis, large.head_optimizer, large.data)
