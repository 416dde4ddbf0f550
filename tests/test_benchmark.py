"""What an iteration costs beside its mathematics, and what it sends between ranks."""

from collections import Counter

import pytest
import torch
from conftest import ALONE, TINY, tiny_config
from counting import Operators
from launch import launch, run_ranks

from ladd_dist.config import load
from ladd_dist.errors import LaddError
from ladd_dist.measuring.benchmark import (
    BareStep,
    bare_and_whole,
    both_orders,
    measure_traffic,
    order,
    overhead,
    take_turns,
)
from ladd_dist.training.trainer import Trainer

BLOCKS = 4  # of the embedded teacher
SHARD = "teacher.placement=shard"
CASES = [
    ("fsdp2", 2, []),
    ("fsdp2", 2, [SHARD]),
    ("fsdp2", 2, [SHARD, "discriminator.blocks=[0,1]", "fsdp2.forward_prefetch=1"]),
    (
        "fsdp2",
        2,
        [SHARD, "train.precision=bf16", "student.activation_checkpointing=true", "method.mismatched_weight=0.5"],
    ),
    ("fsdp2", 3, [SHARD, "method.fake_pass=two_pass", "train.global_batch=12", "train.micro_batch=2"]),
    ("fsdp2", 2, ["student.lora.rank=3", "student.activation_checkpointing=true"]),
    ("zero3", 2, [SHARD]),
    ("zero3", 2, ["method.fake_pass=two_pass"]),
]


def test_the_bare_step_is_the_trainers_mathematics(tmp_path, dataset):
    """Same weights after two iterations on the same samples, from independent code."""
    rates = ["student_optimizer.lr=1e-6", "head_optimizer.lr=1e-6", "train.iterations=2", "train.ema_decay=0.99"]
    config = tiny_config(
        tmp_path, dataset, *rates, "student_optimizer.decay=constant", "head_optimizer.decay=constant"
    )
    trainer, bare = Trainer(config, ALONE), BareStep(config, ALONE.device)
    for index in range(2):
        samples = trainer.samples(index)
        trainer.method.iteration(index, samples)
        bare(samples[0])
    for ours, theirs in ((trainer.method.student.module, bare.student), (trainer.method.heads.module, bare.heads)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_the_trainer_adds_no_arithmetic_and_few_operators_to_the_mathematics(tmp_path, dataset):
    """Draws, clipping's guard, metrics; its time is for `launchers/bench.py`, docs/log.md has what was measured."""
    settings = ["train.iterations=20", "train.log_every=10", "train.checkpoint_every=20"]
    bare, whole = bare_and_whole(tiny_config(tmp_path, dataset, *settings), ALONE)
    for _ in range(2):  # the first makes the optimizers' state
        with Operators() as ours:
            whole()
        with Operators() as theirs:
            bare()
    assert ours.flops == theirs.flops > 0
    assert theirs.calls.total() < ours.calls.total() < 1.1 * theirs.calls.total()


def test_the_shared_fake_pass_saves_a_forward_pass_of_each_network(tmp_path, dataset):
    """Operators and arithmetic: 4 + 4f units of a student forward instead of 5 + 5f."""
    config = tiny_config(tmp_path, dataset)
    samples = Trainer(config, ALONE).samples(0)
    passes, flops = [], []
    for ladd in both_orders(config, ALONE):
        calls = Counter()
        networks = {"student": ladd.student.module, "teacher": ladd.teacher, "heads": ladd.heads.module}
        for name, network in networks.items():
            network.register_forward_hook(lambda *_, name=name, calls=calls: calls.update([name]))
        with Operators() as counted:
            ladd.iteration(0, samples)
        passes.append(calls)
        flops.append(counted.flops)
    assert passes == [{"student": 1, "teacher": 2, "heads": 3}, {"student": 2, "teacher": 3, "heads": 3}]
    with Operators() as saved, torch.no_grad():
        batch, draws = samples[0].batch, samples[0].draws
        ladd.student.module(batch.latents, samples[0].t, batch.cond)
        ladd.teacher(draws.fake_noise, samples[0].s, batch.cond, ladd.taps)
    assert flops[1] - flops[0] == saved.flops > 0.2 * flops[0]


def test_the_demos_training_is_work_for_minutes(tmp_path, dataset):
    """Its matrix products, 21 TFLOP as PyTorch counts them, took two idle cores four minutes (docs/log.md)."""
    demo = load(TINY)
    config = tiny_config(tmp_path, dataset).model_copy(update={"discriminator": demo.discriminator})
    ladd, _ = both_orders(config, ALONE)
    samples = Trainer(config, ALONE).samples(0)
    with Operators() as counted:
        ladd.iteration(0, samples)
    per_sample = counted.flops / config.train.global_batch
    assert per_sample * demo.train.global_batch * demo.train.iterations < 25e12


def _traffic(world, config):
    return measure_traffic(config, world)


@pytest.mark.parametrize(("engine", "ranks", "overrides"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_an_iteration_sends_what_theory_says(tmp_path, dataset, engine, ranks, overrides):
    config = tiny_config(tmp_path, dataset, f"engine={engine}", "train.micro_batch=null", *overrides)
    for seen, expected in run_ranks(_traffic, config, size=ranks):
        assert seen["reduce_scatter"].bytes == expected["reduce_scatter"]
        # Beside the heads' gradients, one number per update: the norm of the student's gradient.
        assert 0 < seen["all_reduce"].bytes - expected["all_reduce"] <= 8
        gathered, theory = seen["all_gather"].bytes, expected["all_gather"]
        if engine == "fsdp2":
            assert gathered == theory
            micro_batches = 12 // ranks // 2 if ranks == 3 else 1
            assert seen["reduce_scatter"].calls == (BLOCKS + 1) * micro_batches  # the root is a unit too
        else:
            assert theory / 4 < gathered < theory


def test_turns_alternate_and_the_ratio_is_the_seconds_over_the_first(monkeypatch):
    now = iter([0, 3, 3, 5] * 100)
    monkeypatch.setattr("ladd_dist.measuring.benchmark.time.process_time", lambda: next(now))
    called = []
    ratio = take_turns(lambda: called.append("first"), lambda: called.append("second"), 2, 3, ALONE)
    assert called == ["second", "first"] * 8
    assert (ratio.first, ratio.second, ratio.ratio) == (2000, 3000, 1.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.fake_pass=two_pass", "set engine=local"),
        ("method.loss=softplus", "set method.loss=hinge"),
        ("method.distillation_weight=1", "set method.distillation_weight=0"),
        ("method.mismatched_weight=1", "set method.mismatched_weight=0"),
    ],
)
def test_the_bare_step_is_one_process_with_the_losses_it_has(tmp_path, dataset, override, message):
    with pytest.raises(LaddError, match=message):
        overhead(tiny_config(tmp_path, dataset, override), ALONE, rounds=1)


@pytest.mark.parametrize(("measure", "what"), [(overhead, "the bare step"), (order, "the fake pass")])
def test_what_only_ladd_has_is_not_measured_of_another_method(tmp_path, measure, what):
    config = load(TINY, ["method={name: flow_matching}", "head_optimizer=null", "discriminator={}"])
    with pytest.raises(LaddError, match=f"{what} is LADD's, but method.name=flow_matching: .* --what traffic"):
        measure(config.model_copy(update={"run_dir": str(tmp_path)}), ALONE, rounds=1)


def test_the_launcher_prints_one_line(tmp_path, dataset):
    from conftest import TINY, tiny_overrides

    done = launch(
        ["bench.py", "--what", "order", "--rounds", "1", "--config", TINY, *tiny_overrides(tmp_path, dataset)]
    )
    assert done.returncode == 0, done.stderr
    assert "two-pass order" in done.stderr and "ratio" in done.stderr
