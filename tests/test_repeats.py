"""Of like blocks three are run, and what a pass costs is to the byte what it would be if all were."""

import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TEACHER, TINY
from diffusers import SD3Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.config import Config, Recomputation, load
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.registry import method_of
from ladd_dist.planning import repeats
from ladd_dist.planning.costs import Costs, PassCost
from ladd_dist.planning.counting import Work
from ladd_dist.planning.plan import largest_bucket

SETTINGS = {
    "every tap": ["method.r1_weight=0.1", "method.mismatched_weight=0.5"],
    "some taps": ["discriminator.blocks=[0,1,2,3,4,5,8]", "train.precision=bf16"],
    "adapters": ["student.lora.rank=4", "train.precision=bf16", "method.fake_pass=two_pass"],
}


@given(st.lists(st.sampled_from("ab"), max_size=30))
def test_every_block_is_run_or_stood_for_by_one_like_it(kinds: list[str]) -> None:
    found = repeats.stands_for(kinds)
    assert len(found) == len(kinds)
    for index, others in enumerate(found):
        if others:
            assert set(kinds[index : index + others + 2]) == {kinds[index]} and kinds[index - 1] == kinds[index]
            assert found[index + 1 : index + 1 + others] == [None] * others
    assert sum(1 + others for others in found if others is not None) == len(kinds)


class Scripted:
    """A counter whose readings are told: bytes alive at the end of a section, the most within it, operations."""

    def __init__(self) -> None:
        self.alive, self.peak, self.work = 7, 7, Work(100)

    def section(self) -> None:
        self.peak = self.alive

    def see(self, alive: int, peak: int, operations: int) -> None:
        self.alive, self.peak, self.work = alive, peak, self.work + Work(operations)


@pytest.mark.parametrize(("alive", "most"), [(12, 7 + 30 + 3 * 5), (2, 7 + 30)])
def test_the_most_of_sections_that_one_stands_for_is_in_the_last_if_they_rise(alive: int, most: int) -> None:
    counter: Any = Scripted()
    course = repeats.Course(counter)
    course.section(3)
    counter.see(alive, 37, 10)
    course.section(0)
    counter.see(alive + 1, alive + 1, 1)
    assert course.end() == (Work(4 * 10 + 1), 7 + 4 * (alive - 7) + 1, most)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blocks of two attentions, five of one, and one without an output for text."""
    folder = tmp_path_factory.mktemp("teacher")
    SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=11, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=16, dual_attention_layers=(0, 1, 2, 3, 4), qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    (folder / "vae").mkdir()
    shutil.copy(ROOT / TEACHER / "vae/config.json", folder / "vae")
    return folder


def all_costs(config: Config) -> dict[Hashable, PassCost]:
    """Of all passes of networks of blocks, by every way to run them."""
    costs = Costs(config, largest_bucket(config), "cpu")
    ways: list[Recomputation] = [False, True, "selective"]
    return {
        (passed, way, engine): costs.of(passed, way, 1, engine and engine_entry(engine).residency(config))
        for passed in method_of(config).passes(config)
        if passed.network != "heads"
        for way in ways
        for engine in (None, "zero3")
    }


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_pass_costs_what_all_blocks_cost(
    teacher: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(TINY, [f"teacher.path={teacher}", "synthesis.buckets=[128x64]", *settings])
    run, others = repeats.stands_for, list[int | None]()
    monkeypatch.setattr(repeats, "stands_for", lambda kinds: others.extend(found := run(kinds)) or found)
    ours = all_costs(config)
    assert {2, None} <= set(others) and len(ours) >= 12
    monkeypatch.setattr(repeats, "stands_for", lambda kinds: [0] * len(kinds))
    assert ours == all_costs(config)
