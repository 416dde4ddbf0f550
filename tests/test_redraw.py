"""An untrained student draws samples of the dataset again: it tells the teacher's from others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, tiny_config
from latents import copy_of

from ladd_dist.data.mds import Manifest, Provenance
from ladd_dist.errors import LaddError
from ladd_dist.measuring.sickness import SICKNESSES
from ladd_dist.training import redraw
from ladd_dist.training.guard import ALARMS
from ladd_dist.training.redraw import REDRAWN
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

NEAR = 0.02
"""What bf16 latents and another batch size may change."""


def told(folder: Path) -> list[str]:
    """Rules that alarmed."""
    file = folder / ALARMS
    return [json.loads(line)["rule"] for line in file.read_text().splitlines()] if file.exists() else []


def test_the_teachers_own_latents_are_known_again_once(tmp_path: Path, dataset: Path) -> None:
    for iterations in (2, 3):
        Trainer(tiny_config(tmp_path, dataset, f"train.iterations={iterations}"), ALONE).run()
    rows = read_metrics(tmp_path)
    assert 0 < rows[0][REDRAWN] < NEAR and len(rows) == 3
    assert not any(REDRAWN in row for row in rows[1:]) and told(tmp_path) == []


def test_looking_changes_nothing_of_the_run(tmp_path: Path, dataset: Path) -> None:
    rows = {}
    for look in (True, False):
        run_dir = tmp_path / str(look)
        Trainer(tiny_config(run_dir, dataset, "train.iterations=2", f"guard.redraw={look}"), ALONE).run()
        rows[look] = [[row[key] for key in ("d_loss", "g_loss", "head_grad_norm")] for row in read_metrics(run_dir)]
    assert rows[True] == rows[False]


def test_pictures_in_the_place_of_the_teachers_alarm_in_the_first_row(tmp_path: Path, dataset: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, dataset, "train.iterations=2"), ALONE)
    SICKNESSES["real-data"].begin(trainer)
    trainer.run()
    (event,) = [json.loads(line) for line in (tmp_path / ALARMS).read_text().splitlines()]
    assert (event["rule"], event["iteration"]) == ("not the teacher's", 1) and event["value"] > 0.4


@pytest.mark.parametrize("changed", [{"guidance": 6.0}, {"seed": 1}], ids=["guidance", "seed"])
def test_latents_that_were_drawn_otherwise_than_the_manifest_says_are_farther(
    tmp_path: Path, dataset: Path, changed: dict[str, Any]
) -> None:
    data, config = copy_of(dataset, tmp_path)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["provenance"] |= changed
    (data / "manifest.json").write_text(json.dumps(manifest))
    (data / "SHA256SUMS").unlink()
    Trainer(config, ALONE).run()
    assert read_metrics(config.run_dir)[0][REDRAWN] > 5 * NEAR


@pytest.mark.parametrize(
    ("changed", "overrides", "why"),
    [
        ({"steps": 0}, [], "its pictures were given"),
        ({"pairs": "rank:clip"}, [], "its pictures were chosen among others"),
        ({}, ["student.layers=[0,2]"], "the student starts from something else than its teacher"),
        ({"device": "cuda"}, [], "it was drawn from a GPU's noise, by an older version, or does not say from which"),
        ({"device": None}, [], "it was drawn from a GPU's noise, by an older version, or does not say from which"),
        ({"empty": None}, [], "it lacks the empty prompt's conditioning"),
        ({"empty": None, "guidance": 1.0}, [], None),
        ({}, [], None),
    ],
)
def test_what_cannot_be_drawn_again_is_said(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    overrides: list[str],
    why: str | None,
) -> None:
    manifest, lines = Manifest.read(dataset), list[str]()
    made = {key: value for key, value in changed.items() if key in Provenance.__annotations__}
    manifest = replace(manifest, provenance=replace(manifest.provenance, **made))
    if "device" in changed:
        manifest = replace(manifest, device=changed["device"])
    monkeypatch.setattr(redraw, "log", lines.append)
    data = tmp_path if "empty" in changed else dataset
    found = redraw.Redraw.of(tiny_config(tmp_path, data, *overrides), manifest)
    assert (found is None) == (why is not None) and len(lines) == (why is not None)
    assert why is None or lines[0].endswith(f": {why}")


def test_what_is_no_number_ends_the_run_in_one_line(dataset: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, dataset), ALONE)
    next(iter(trainer.method.student.shards().values())).local[0] = torch.nan
    with pytest.raises(LaddError, match=r"drew non-finite latents, or those of data\.path=.* are zeros: try train"):
        trainer.run()


def test_it_can_be_left_out(dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, dataset, "guard.redraw=false")
    assert redraw.Redraw.of(config, Manifest.read(dataset)) is None
