"""Diffusion-DPO: adapters of the student against the student without them, through the one trainer."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ALONE, TINY, tiny_config, tiny_overrides
from latents import write_pairs
from ranks import ENGINES, ranks
from torch import Tensor

from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config, load
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import trainable
from ladd_dist.errors import LaddError
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.methods.dpo import Dpo
from ladd_dist.methods.registry import build_method
from ladd_dist.report.charts import draw_charts
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

BETA = 20
"""A multiple of the rounding of errors is in a loss: at 200 it is 1.2e-5 of it, with an old processor's kernels."""
DPO = [
    f"method={{name: dpo, beta: {BETA}}}",
    "discriminator={}",
    "head_optimizer=null",
    "student_optimizer.decay=constant",
    "student_optimizer.eps=1e-4",
    "student.lora={rank: 3}",
]
FP32 = 1e-5
"""As in test_parity."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, random_dataset: Path) -> Path:
    return write_pairs(random_dataset, tmp_path_factory.mktemp("pairs") / "latents")


def dpo_config(run_dir: Path, pairs: Path, teacher: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, pairs, f"teacher.path={teacher}", *DPO, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pairs: Path, random_teacher: Path) -> Path:
    """A run that was stopped after four of its six iterations and went on."""
    run_dir = tmp_path_factory.mktemp("dpo")
    Trainer(dpo_config(run_dir, pairs, random_teacher, "train.iterations=4"), ALONE).run()
    Trainer(dpo_config(run_dir, pairs, random_teacher), ALONE).run()
    return run_dir


def test_a_run_that_was_stopped_is_the_same(run: Path, pairs: Path, random_teacher: Path, tmp_path: Path) -> None:
    Trainer(dpo_config(tmp_path, pairs, random_teacher), ALONE).run()
    assert compare_runs(run, tmp_path, steps=6, tolerance=0).accepted


def test_it_records_by_bucket_what_it_records(run: Path, pairs: Path, random_teacher: Path, tmp_path: Path) -> None:
    rows = read_metrics(run)
    buckets = json.loads((pairs / "manifest.json").read_text())["counts"]
    told = {"loss", "accuracy", "margin", "chosen_gain", "rejected_gain", "distance"}
    for row in rows:
        assert told | {"student_grad_norm", "student_lr"} <= set(row)
        (bucket,) = [bucket for bucket in buckets if f"accuracy/{bucket}" in row]  # log_every=1: an iteration has one
        assert {f"{name}/{bucket}": row[name] for name in told}.items() <= row.items()
    assert len({key for row in rows for key in row if key.startswith("accuracy/")}) > 1
    assert Dpo.line(rows[0]).startswith("loss 0.69")
    names = {path.stem for path in draw_charts(rows, dpo_config(run, pairs, random_teacher), tmp_path)}
    assert names == {"preference", "distance", "speed"}


def _train(world: World, config: Config) -> None:
    Trainer(config, world).run()


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_ranks_train_as_one_process_does(
    run: Path, pairs: Path, random_teacher: Path, tmp_path: Path, engine: str
) -> None:
    """With accumulation and recomputation, which one process did without."""
    settings = [*ENGINES[engine], "train.micro_batch=2", "student.activation_checkpointing=true"]
    ranks(2)(_train, dpo_config(tmp_path, pairs, random_teacher, *settings))
    found = compare_runs(run, tmp_path, steps=6, tolerance=FP32)
    assert found.accepted, found.metrics


def _method(pairs: Path, teacher: Path, tmp_path: Path, *overrides: str) -> Dpo:
    method = build_method(dpo_config(tmp_path, pairs, teacher, *overrides), ALONE, Clock(ALONE))
    assert isinstance(method, Dpo)
    return method


def _batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 3, 8, 8, 8, generator=g)
    cond = Conditioning(torch.randn(3, 5, 64, generator=g), torch.randn(3, 64, generator=g))
    return Batch(chosen, cond, [4, 5, 6], "32x32", rejected=rejected)


def test_the_loss_is_that_of_the_paper(pairs: Path, random_teacher: Path, tmp_path: Path) -> None:
    """Written out pair by pair, with a second network for the reference."""
    method, batch = _method(pairs, random_teacher, tmp_path), _batch()
    module = method.student.module
    g = torch.Generator().manual_seed(1)
    for p in trainable(module).values():
        p.data.copy_(torch.randn(p.shape, generator=g) * 0.1)
    sample = method.sample(0, 0, batch, (4, 4))

    def error(x0: Tensor, i: int, adapter: bool) -> Tensor:
        noise, t = sample.noise[i : i + 1], sample.t[i : i + 1]
        x_t = (1 - t) * x0 + t * noise
        cond = Conditioning(*(part[i : i + 1] for part in batch.cond))
        return (module(x_t, t, cond, adapter=adapter) - (noise - x0)).square().mean()

    losses, rejected = [], batch.rejected
    assert rejected is not None
    for i in range(3):
        w, l = batch.latents[i : i + 1], rejected[i : i + 1]  # noqa: E741 - the paper's names
        inside = (error(w, i, True) - error(w, i, False)) - (error(l, i, True) - error(l, i, False))
        losses.append(-torch.nn.functional.logsigmoid(-BETA / 2 * inside))
    expected = torch.stack(losses).mean()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in trainable(module).items() if p.grad is not None}
    module.zero_grad()
    log = method._accumulate(sample, 1.0, last=True)
    torch.testing.assert_close(log["loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, p in trainable(module).items():
        torch.testing.assert_close(p.grad, wanted[name], rtol=0, atol=1e-4 * scale)


def test_both_pictures_of_a_pair_share_noise_level_and_prompt(
    pairs: Path, random_teacher: Path, tmp_path: Path
) -> None:
    sample = _method(pairs, random_teacher, tmp_path).sample(0, 0, _batch(), (4, 4))
    for tensor in (sample.noise, sample.t, *sample.cond):
        assert torch.equal(*tensor.chunk(2))
    assert not torch.equal(*sample.latents.chunk(2))
    assert len(set(sample.t[:3].tolist())) == 3 and sample.t.min() > 0 and sample.t.max() < 1


def test_a_student_as_base_is_tuned_at_its_own_times(pairs: Path, random_teacher: Path, tmp_path: Path) -> None:
    method = _method(pairs, random_teacher, tmp_path, "method.noise_levels=student_times")
    seen = {t for index in range(40) for t in method.sample(0, index, _batch(), (4, 4)).t.tolist()}
    assert seen == {1.0, 0.75, 0.5, 0.25}


def test_it_learns_which_of_two_is_preferred_and_the_base_stays(
    pairs: Path, random_teacher: Path, tmp_path: Path
) -> None:
    method = _method(pairs, random_teacher, tmp_path, "student_optimizer.lr=1e-2", "method.beta=200")
    module = method.student.module
    before = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
    sample = method.sample(0, 0, _batch(), (4, 4))
    first = method.iteration(0, [sample])
    assert float(first["loss"]) == pytest.approx(0.6931, abs=1e-3) and float(first["distance"]) == 0
    for index in range(1, 30):
        last = method.iteration(index, [sample])
    assert float(last["loss"]) < 0.3 and float(last["accuracy"]) == 1 and float(last["distance"]) > 0
    after = dict(module.named_parameters())
    assert before and all(torch.equal(after[name], value) for name, value in before.items())


def test_without_adapters_it_is_refused(tmp_path: Path) -> None:
    overrides = [*tiny_overrides(tmp_path, tmp_path / "data"), *DPO, "student.lora=null"]
    with pytest.raises(LaddError, match=r"method.name=dpo trains adapters alone: set student.lora.rank=256"):
        load(TINY, overrides)


def test_latents_without_pairs_are_refused(random_dataset: Path, random_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(LaddError, match=r"method.name=dpo needs preference pairs, but .*launchers/pairs.py"):
        Trainer(dpo_config(tmp_path, random_dataset, random_teacher), ALONE)


def test_adapters_of_a_base_are_drawn_with_on_a_student_alone(run: Path, pairs: Path, random_teacher: Path) -> None:
    config, checkpoint = dpo_config(run, pairs, random_teacher), open_newest(run, ALONE)
    assert checkpoint is not None
    with pytest.raises(LaddError, match="tunes a base, which needs many steps: draw with its adapters on a student"):
        load_student(config, checkpoint, "ema", torch.float32)
    with pytest.raises(LaddError, match="train.preview_every=2 draws in few steps, but method.name=dpo tunes a base"):
        dpo_config(run, pairs, random_teacher, "train.preview_every=2")
    assert dpo_config(run, pairs, random_teacher, "method.noise_levels=student_times", "train.preview_every=2")


@pytest.mark.parametrize("name", ["tiny", "sd35_large"])
def test_the_configurations_go_with_those_of_the_distillation(name: str) -> None:
    tuning = load(f"configs/{name}_dpo.yaml")
    distillation = load(TINY if name == "tiny" else f"configs/{name}.yaml")
    assert tuning.teacher.path == distillation.teacher.path
    assert tuning.teacher.max_t5_tokens == distillation.teacher.max_t5_tokens
    assert tuning.student.lora is not None and tuning.run_dir != distillation.run_dir
