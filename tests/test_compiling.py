"""What `compile: auto` decides."""

from dataclasses import replace

import pytest
import torch
from conftest import ALONE, TINY

from ladd_dist.config import load
from ladd_dist.methods.compiling import compiles
from ladd_dist.methods.networks import meta_student

GPU = replace(ALONE, device=torch.device("cuda"))
LONG = "train.iterations=100000"


def decided(*overrides, world=ALONE):
    config = load(TINY, ["run_dir=unused", *overrides])
    return compiles(config, "student", meta_student(config), world)


def test_a_run_is_compiled_where_it_is_long_enough_to_earn_it(monkeypatch):
    assert not decided(), "the demo is over before compiling has paid"
    assert decided(LONG)
    assert decided(LONG, "student.compile=auto", "teacher.compile=false")
    assert not decided(LONG, world=replace(ALONE, size=100)), "each rank compiles for itself"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not decided(LONG), "there is no compiler"


@pytest.mark.parametrize("world", [ALONE, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("setting", ["true", "false"])
def test_what_is_asked_for_is_done(setting, world):
    assert decided(f"student.compile={setting}", LONG, world=world) is (setting == "true")


def test_auto_never_compiles_where_that_was_not_measured_or_cannot_be():
    assert not decided(LONG, world=GPU)
    assert not decided(LONG, "engine=zero3")
