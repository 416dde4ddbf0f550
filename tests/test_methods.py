"""The method seam: a second objective goes through the same trainer, record, checkpoints, comparison and export."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALONE, ROOT, TINY, tiny_config, tiny_overrides
from huggingface_hub import ModelCard

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config, load
from ladd_dist.config.method import DpoConfig, FlowMatchingConfig, LaddConfig
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.mds import REJECTED
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.errors import LaddError
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.methods.flow_matching import FlowMatching
from ladd_dist.methods.registry import METHODS, build_method, method_of
from ladd_dist.models.registry import family_of
from ladd_dist.planning.memory import expected_state
from ladd_dist.planning.networks import check_networks
from ladd_dist.report.charts import draw_charts
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

FINE_TUNING = [
    "method={name: flow_matching}",
    "discriminator={}",
    "head_optimizer=null",
    "student_optimizer.decay=constant",
]
DPO = ["method={name: dpo}", "student.lora.rank=2", "train.preview_every=0"]
OTHER = "student.path=ladd_dist/digits/teacher"


def fine_tuning(run_dir: Path, dataset: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, dataset, *FINE_TUNING, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A fine-tuning that was stopped after four of its six iterations and went on."""
    run_dir = tmp_path_factory.mktemp("fine_tuning")
    Trainer(fine_tuning(run_dir, dataset, "train.iterations=4"), ALONE).run()
    Trainer(fine_tuning(run_dir, dataset), ALONE).run()
    return run_dir


def test_it_records_what_it_declares(run: Path, dataset: Path, tmp_path: Path) -> None:
    rows = read_metrics(run)
    assert [row["iteration"] for row in rows] == list(range(1, 7))
    assert all(set(FlowMatching.COMPARED) | {"student_lr"} <= set(row) and "head_lr" not in row for row in rows)
    assert FlowMatching.line(rows[0]).startswith("loss ")
    names = {path.stem for path in draw_charts(rows, fine_tuning(run, dataset), tmp_path)}
    assert names == {"losses", "speed"}


def test_a_run_that_was_stopped_is_the_same(run: Path, dataset: Path, tmp_path: Path) -> None:
    Trainer(fine_tuning(tmp_path, dataset), ALONE).run()
    found = compare_runs(run, tmp_path, steps=6, tolerance=0)
    assert found.accepted and set(found.parameters) == {"student", "ema"}


def test_its_checkpoint_is_exported_as_what_draws_as_its_teacher(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_newest(run, ALONE)
    assert checkpoint is not None
    assert {key.split("/")[0] for key in checkpoint.shapes} == {"student", "ema"}
    config, example = fine_tuning(run, dataset), PromptEntry(0, "a seven", Bucket(32, 32))
    folder = export(config, checkpoint, tmp_path / "out", "ema", torch.float32, example)
    card = (folder / "README.md").read_text()
    assert "A fine-tuned copy of `teacher`, trained by flow matching" in card and "few-step" not in card
    called = {"num_inference_steps": 2, "guidance_scale": 1.5, "max_sequence_length": 10}
    assert ModelCard(card).data.inference == {"parameters": called}

    pipeline = Pipeline(config, ALONE.device)
    encoded = pipeline.encode([example.prompt], [0], example.bucket)
    network = load_student(config, checkpoint, "ema", torch.float32)
    with torch.no_grad():
        (ours,) = pipeline.decode(pipeline.teacher(network, encoded, 2, 1.5))
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], drawn := {})
    theirs = torch.from_numpy(np.asarray(drawn["image"]).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(ours, theirs, atol=0.51 / 255, rtol=0)

    for key in ("teacher.path", "student.path"):
        check_networks(load(TINY, [f"{key}={folder}"]))
    settings = [family_of(path).schedule(path).settings for path in (folder, config.teacher.path)]
    assert settings[0] == settings[1]
    said = runpy.run_path(str(ROOT / "launchers/export.py"))["_drawn"](checkpoint, Path("out.safetensors"))
    assert said.endswith("to out.safetensors: draw with it as with the teacher")


def test_the_gradient_is_that_of_the_velocitys_error(dataset: Path, tmp_path: Path) -> None:
    method = build_method(config := fine_tuning(tmp_path, dataset), ALONE, Clock(ALONE))
    g = torch.Generator().manual_seed(0)
    cond = Conditioning(torch.randn(3, 5, 64, generator=g), torch.randn(3, 64, generator=g))
    sample = method.sample(0, 0, Batch(torch.randn(3, 4, 8, 8, generator=g), cond, [5, 6, 7], "32x32"), (8, 8))
    assert config.method.student_times[0] == 1 and sample.t.min() > 0 and sample.t.max() < 1
    network = method.student.module
    t = sample.t.view(-1, 1, 1, 1)
    x_t = (1 - t) * sample.batch.latents + t * sample.noise
    error = network(x_t, sample.t, cond) - (sample.noise - sample.batch.latents)
    expected = torch.autograd.grad(error.square().mean(), list(network.parameters()), allow_unused=True)
    norm = torch.stack([g.norm() for g in expected if g is not None]).norm()
    metrics = method.iteration(0, [sample])
    torch.testing.assert_close(metrics["student_grad_norm"], norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(metrics["loss"], error.square().mean().detach())


def test_the_memory_formula_asks_the_method(dataset: Path, tmp_path: Path) -> None:
    kinds = {kind for _, kind in expected_state(fine_tuning(tmp_path, dataset), 1)}
    assert "masters" in kinds and not kinds & {"teacher", "heads"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=dmd"], "method: unknown method: known are ladd, flow_matching, dpo"),
        (
            ["method={name: flow_matching}"],
            "is the discriminator's, but method.name=flow_matching has none: remove it",
        ),
        (["head_optimizer=null"], "missing key 'head_optimizer'"),
        (["method={name: flow_matching, r1_weight: 1}"], "unknown key 'method.r1_weight': known keys here are"),
        (
            ["method.distillation_wait=1"],
            "unknown key 'method.distillation_wait': did you mean 'distillation_weight'",
        ),
    ],
)
def test_a_setting_of_another_method_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(LaddError) as refused:
        load(TINY, overrides)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "default"),
    [
        ("placement", "shard", "replicate"),
        ("activation_checkpointing", "selective", "False"),
        ("compile", "True", "auto"),
        ("float8", "True", "False"),
    ],
)
@pytest.mark.parametrize("more", [[], [*DPO, "student.layers=[0]"], [*DPO, "student.heads=1"], [*DPO, OTHER]])
def test_settings_of_a_teacher_that_is_not_built_are_refused(
    more: list[str], key: str, value: str, default: str
) -> None:
    overrides = [*FINE_TUNING, *more, "train.precision=bf16"]
    load(TINY, [*overrides, f"teacher.{key}={default.lower()}"])
    with pytest.raises(
        LaddError, match=f"teacher.{key}={value} is of no use: .*: set teacher.{key}={default}$"
    ) as error:
        load(TINY, [*overrides, f"teacher.{key}={value.lower()}"])
    assert f"method.name={load(TINY, overrides).method.name} builds no frozen teacher" in str(error.value)


def test_a_teacher_is_built_where_the_configuration_says_so() -> None:
    for overrides in ([], ["student.lora.rank=2"], ["student.lora.rank=2", OTHER], FINE_TUNING, [*FINE_TUNING, *DPO]):
        config = load(TINY, overrides)
        assert config.builds_teacher == bool(method_of(config).networks(config).frozen)


def test_a_checkpoint_of_another_method_is_refused(run: Path, dataset: Path) -> None:
    with pytest.raises(LaddError, match=r"trained with method\.name=flow_matching, .* has ladd"):
        Trainer(load(TINY, tiny_overrides(run, dataset)), ALONE)


def test_who_needs_pairs_says_so_in_its_section() -> None:
    """Where jobs are submitted from, there is no torch to ask the method."""
    sections = {"ladd": LaddConfig, "flow_matching": FlowMatchingConfig, "dpo": DpoConfig}
    needs = {name: REJECTED in method.FIELDS for name, method in METHODS.items()}
    assert needs == {name: section.trains_on_pairs for name, section in sections.items()}


def test_names_are_the_registrys() -> None:
    assert all(METHODS[load(TINY, o).method.name] for o in ([], FINE_TUNING))
