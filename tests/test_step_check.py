"""The step measured in several settings: by the program that a GPU has, on small networks and the CPU."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import triton
from conftest import ROOT, TINY
from test_memory import SMALL_HEADS

from ladd_dist.config import load
from ladd_dist.engines.settings import check_settings
from ladd_dist.measuring import step_check
from ladd_dist.measuring.one_after_another import CUT_SHORT, OneAfterAnother
from ladd_dist.measuring.step_check import Setting, check_step, settings, table
from ladd_dist.planning.plan import WORKSPACE

ONE_GPU = [f"configs/sd35_large_{size}gb.yaml" for size in (141, 80, 48)]


@pytest.mark.parametrize("path", ONE_GPU)
def test_every_setting_can_be_run_and_differs_from_the_others(path: str) -> None:
    found = settings(load(path))
    configs = [load(path, ["train.global_batch=4", *setting.overrides]) for setting in found]
    for config in configs:
        check_settings(config)
    assert len({repr(config) for config in configs}) == len({setting.name for setting in found}) == len(found)
    assert any("float8" in setting.name for setting in found) is not configs[0].student.is_teachers_base


def test_rows_come_one_by_one_and_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one that failed, which comes last."""
    monkeypatch.chdir(ROOT)
    chosen = [Setting("as configured", ()), Setting("on Triton", ("kernels.attention=triton",)), Setting("later", ())]
    monkeypatch.setattr(step_check, "settings", lambda config: chosen[:2])
    monkeypatch.setattr(step_check, "commit_of", lambda root, results: "0123456789ab")
    overrides = [
        "device=cpu",
        f"run_dir={tmp_path}/run",
        "train.micro_batch=2",
        "method.fake_pass=two_pass",
        *SMALL_HEADS,
    ]
    out = tmp_path / "step.json"
    lines = list(check_step(Path(TINY), overrides, out, seconds=500, rounds=1))
    first, refused = json.loads(out.read_text())
    assert lines[0].startswith("as configured: ") and lines[0].endswith(" s per sample")
    assert (first["device"], first["samples"], first["triton"]) == ("CPU", 4, triton.__version__)
    assert first["commit"] == refused["commit"] == "0123456789ab" and first["date"] == refused["date"]
    assert {"student forward", "teacher backward", "optimizer", "average"} <= set(first["phases"])
    assert 0 < sum(first["phases"].values()) <= first["seconds"]
    assert "kernels.attention=triton" in refused["error"] and lines[1] == f"on Triton: {refused['error']}"

    monkeypatch.setattr(step_check, "settings", lambda config: chosen)
    assert list(check_step(Path(TINY), overrides, out, seconds=0, rounds=1)) == [
        "later: out of time: the same command goes on here",
        "on Triton: out of time: the same command goes on here",
    ]
    head, _, *cells = out.with_suffix(".md").read_text().splitlines()
    assert len({line.count("|") for line in (head, *cells)}) == 1
    assert cells[0].startswith("| tiny_cpu | as configured | ") and refused["error"] in cells[1]


class Failing:
    """In the place of a process that measures: whatever it is asked goes wrong."""

    def __init__(self, config_file: Path, rounds: int) -> None:
        self.end = self.measure = lambda *_: {"error": "wrong"}


GIVEN = [*step_check._COMMON, "device=cpu"]
OLD = {"config": TINY, "setting": "as configured", "overrides": GIVEN, "device": "CPU", "commit": "0123456789ab"}
TODAY = "2026-11-30"


@pytest.mark.parametrize(
    ("old", "commit", "found"),
    [
        ({}, "0123456789ab", ["old"]),
        ({}, "ba9876543210", ["new"]),
        ({}, "0123456789ab-dirty", ["new"]),
        ({}, None, ["new"]),
        ({"commit": None}, "0123456789ab", ["new"]),
        ({"commit": None}, None, ["new"]),
        ({"commit": None, "date": TODAY}, None, ["old"]),
        ({"overrides": [*GIVEN, "seed=1"]}, "0123456789ab", ["new"]),
        ({"device": "NVIDIA H200"}, "0123456789ab", ["old", "new"]),
        ({"error": "out of memory"}, "0123456789ab", ["new"]),
    ],
)
def test_a_row_of_other_code_is_measured_anew_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, Any], commit: str | None, found: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for name, value in {
        "settings": lambda config: [Setting("as configured", ())],
        "OneAfterAnother": Failing,
        "commit_of": lambda root, results: commit,
        "_today": lambda: TODAY,
        "table": lambda rows: [],
    }.items():
        monkeypatch.setattr(step_check, name, value)
    rows = [{"date": "2026-11-29", "torch": "old"} | OLD | old, OLD | {"setting": "of a time before"}]
    out = tmp_path / "step.json"
    out.write_text(json.dumps(rows))
    cut_short = list(check_step(Path(TINY), GIVEN[2:], out, seconds=0, rounds=1))
    assert json.loads(out.read_text()) == rows and len(cut_short) == ("new" in found)
    list(check_step(Path(TINY), GIVEN[2:], out, seconds=500, rounds=1))
    first, other, *more = json.loads(out.read_text())
    assert [row.get("torch", "new") for row in (first, *more)] == found and other == rows[1]


def test_what_is_planned_of_every_measured_step_is_within_a_tenth_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table in docs is what the planner says today, beside what a GPU said."""
    monkeypatch.chdir(ROOT)
    file = ROOT / "docs/benchmarks/step.json"
    rows = json.loads(file.read_text())
    lines = list(table(rows))
    again = "the planner has changed: launchers/step.py with --seconds 1 writes the table anew"
    assert lines == file.with_suffix(".md").read_text().splitlines(), again
    assert list(table(rows[-1:]))[2:] == lines[-1:], "by itself, with kernels of its own"
    names, _, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    for values in (dict(zip(names, row, strict=True)) for row in cells):
        if values["peak, GB"]:
            peak, planned = float(values["peak, GB"]), float(values["planned, GB"])
            assert abs(planned - peak) <= 0.1 * peak, values["setting"]
    for row in rows:  # what the allocator holds beyond its tensors is in the planner's workspace
        assert row.get("reserved", 0) - row.get("peak", 0) < WORKSPACE


def test_a_process_that_was_ended_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    measurer, refused = OneAfterAnother(Path(TINY), rounds=1), ["device=cpu", "kernels.attention=triton"]
    try:
        assert "kernels.attention=triton" in measurer.measure(refused, 500)["error"]
        first = measurer._process
        assert first is not None
        first.kill()
        assert "its process was ended" in measurer.measure(refused, 500)["error"]
        assert "kernels.attention=triton" in measurer.measure(refused, 500)["error"]
        second = measurer._process
        assert second is not None and second.pid != first.pid
        assert second.pid is not None
        os.kill(second.pid, signal.SIGSTOP)  # or it might answer before it is asked for the answer
        assert measurer.measure(refused, 0.1)["error"] == CUT_SHORT and not second.is_alive()
    finally:
        measurer.end()
