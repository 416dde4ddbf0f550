"""A run that W&B is to see finds out before it waits, or loads anything, that W&B has no key to log in with."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ALONE, ROOT, TINY, tiny_config

from ladd_dist.cli import Launch
from ladd_dist.config import load
from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import LaddError
from ladd_dist.jobs.wandb_key import check_key
from ladd_dist.measuring.benchmark import measure_traffic
from ladd_dist.preflight.run import preflight
from ladd_dist.supervision.signals import Signals
from ladd_dist.training import trainer

ONLINE = "tracking.wandb=online"
NO_KEY = (
    "tracking.wandb=online finds no key of W&B for https://.*: run `wandb login`, set WANDB_API_KEY, or set track"
)
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of somebody who has never logged in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_a_key_the_line_says_where_one_may_be() -> None:
    with pytest.raises(LaddError, match=NO_KEY):
        check_key(load(TINY, [ONLINE]))


@pytest.mark.parametrize("mode", ["off", "offline"])
def test_only_online_needs_one(mode: str) -> None:
    check_key(load(TINY, [f"tracking.wandb={mode}"]))


def test_a_key_is_found_where_wandb_finds_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load(TINY, [ONLINE])
    check_key(config, {"WANDB_API_KEY": KEY})
    with pytest.raises(LaddError, match="finds no key of W&B for https://wandb.example.com"):
        check_key(config, {"WANDB_BASE_URL": "https://wandb.example.com"})
    (home / ".netrc").write_text(f"machine wandb.example.com login user password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    check_key(config, {"WANDB_BASE_URL": "https://wandb.example.com"})
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_key(config)
    assert capfd.readouterr() == ("", ""), "nothing is said of what is secret"


def test_a_key_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with pytest.raises(
        LaddError, match="tracking.wandb=online: WANDB_API_KEY invalid: .* run `wandb login`"
    ) as refused:
        check_key(load(TINY, [ONLINE]))
    assert "secret" not in str(refused.value)


def test_training_asks_before_it_loads(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "build_method", lambda *_: pytest.fail("networks are built"))
    config = tiny_config(tmp_path / "run", dataset, ONLINE)
    launcher = runpy.run_path(str(ROOT / "launchers/train.py"))
    with pytest.raises(LaddError, match=NO_KEY):
        launcher["main"](Launch(argparse.Namespace(), config, ALONE), Signals())
    with pytest.raises(LaddError, match=NO_KEY):
        preflight(config, ALONE, "train")


def test_a_measurement_sends_nothing_and_asks_for_no_key(tmp_path: Path, dataset: Path) -> None:
    measure_traffic(tiny_config(tmp_path / "run", dataset, ONLINE), ALONE)


def test_slurm_is_asked_for_no_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(tmp_path / "cluster.yaml", {"nodes": 1, "gpus_per_node": 0, "time": "1:00:00"})
    command = [
        "submit.py",
        "--config",
        TINY,
        "--cluster",
        str(tmp_path / "cluster.yaml"),
        f"run_dir={tmp_path / 'run'}",
    ]
    monkeypatch.setattr(sys, "argv", [*command, ONLINE])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "launchers/slurm/submit.py"), run_name="__main__")
    assert "error: tracking.wandb=online finds no key" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "no script is written"
