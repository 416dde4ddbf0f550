"""What a step, its averages and the weights say of a run's health."""

from typing import Any, cast

import pytest
import torch
from checkpoints import engine, in_threads, train
from conftest import ALONE, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Shard
from ladd_dist.engines.ema import Ema
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.statistics import against_data, by_noise, opinions, told_apart
from ladd_dist.training.averages import MetricAverages
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer
from ladd_dist.training.weights import WeightChanges


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that stand in for ranks average what they gather."""

    def mean_(world: World, tensors: list[torch.Tensor]) -> None:
        everyones = world.gather([t.clone() for t in tensors])
        for t, *parts in zip(tensors, *everyones, strict=True):
            t.copy_(torch.stack(parts).mean(0))

    monkeypatch.setattr(World, "mean_", mean_)


# Heads


def test_opinions_are_of_each_head_and_sample() -> None:
    logits = torch.tensor([[[[2.0, 0.5]], [[-3.0, 1.5]]]])  # one head, two samples of two positions
    real, fake = opinions(logits, "real"), opinions(logits, "fake")
    assert real.logit.tolist() == fake.logit.tolist() == [[1.25, -0.75]]
    assert (real.right.tolist(), fake.right.tolist()) == ([[1.0, 0.5]], [[0.0, 0.5]])
    assert (real.saturated.tolist(), fake.saturated.tolist()) == ([[0.5, 0.5]], [[0.0, 0.5]])
    assert real.spread.item() == pytest.approx(logits.std(correction=0).item())


def test_heads_that_look_at_nothing_have_no_spread_and_are_not_right() -> None:
    dead = torch.zeros(2, 3, 4, 4)
    level = torch.tensor([0.1, 0.6, 0.6])
    told = told_apart(opinions(dead, "real"), opinions(dead, "fake"), level, level)
    assert told["head_spread"].tolist() == told["head_right"].tolist() == [0.0, 0.0]
    assert told["gap"] == told["real_saturated"] == told["fake_saturated"] == 0


def test_bands_of_noise_hold_every_sample_once() -> None:
    logits, level = noise(3, 64, 2, 2), torch.linspace(0.01, 0.7, 64)
    seen = opinions(logits, "fake")
    bands = by_noise("fake", seen, level)
    assert list(bands)[5] == "fake_logit/noise_0.25-0.50" and len(bands) == 8
    inside = (level >= 0.25) & (level < 0.5)
    for what, values in (("right", seen.right), ("logit", seen.logit)):
        assert bands[f"fake_{what}/noise_0.75-1.00"].isnan()  # no sample there
        torch.testing.assert_close(bands[f"fake_{what}/noise_0.25-0.50"], values[:, inside].mean())
    assert by_noise("fake", seen, level + 0.3)["fake_right/noise_0.75-1.00"].isfinite()  # 1 is in the last one


# Latents


@given(st.integers(0, 99), st.floats(0.1, 10))
def test_latents_are_like_themselves_and_scaled_ones_are_told(seed: int, scale: float) -> None:
    data = noise(4, 2, 6, 8, seed=seed)
    told = {key: value.item() for key, value in against_data(scale * data, data).items()}
    assert told["x0_scale"] == pytest.approx(scale, rel=1e-4)
    assert told["x0_detail"] == pytest.approx(scale**2, rel=1e-4)
    assert told["x0_diversity"] == pytest.approx(scale, rel=1e-4)
    assert told["data_diversity"] == pytest.approx(1, abs=0.3)  # independent numbers


def test_noise_blur_shift_and_one_picture_for_all_are_told() -> None:
    smooth = noise(4, 2, 3, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert against_data(smooth + 0.5 * noise(4, 2, 12, 16), smooth)["x0_detail"] > 1.5
    assert against_data(noise(4, 2, 12, 16), smooth)["x0_detail"] > 2
    assert against_data(smooth + torch.tensor([0.0, 3.0]).view(1, 2, 1, 1), smooth)["x0_shift"] > 2
    assert against_data(smooth[:1].expand_as(smooth), smooth)["x0_diversity"] == 0
    constant = against_data(smooth, smooth[:1].expand_as(smooth))
    assert constant["data_diversity"] == 0 and constant["x0_diversity"].isinf()
    assert against_data(smooth[:1], smooth[:1])["x0_diversity"].isnan()


# Averages


def test_what_was_not_there_to_be_measured_is_left_out_of_averages(tmp_path: Any, means: None) -> None:
    config = tiny_config(tmp_path, tmp_path, "head_optimizer.decay=constant")
    base = {"skipped": torch.tensor(0.0), "d_loss": torch.tensor(1.0), "g_loss": torch.tensor(0.0)}
    base |= {key: torch.zeros(2) for key in ("real_logit", "fake_logit")} | {"student_grad_norm": torch.tensor(1.0)}

    def row(world: World) -> dict[str, Any]:
        averages = MetricAverages(config, world, Clock(world), 0)
        seen = [[1.0, torch.nan], [3.0, 8.0]][world.rank]
        for band in seen:
            averages.add(base | {"band": torch.tensor(band), "never": torch.tensor(torch.nan)})
        return averages.row(2, {"student": 1.0, "heads": 0.5})

    first, second = in_threads(2, row)
    assert first["band"] == second["band"] == 4.0
    assert "never" not in first and first["d_loss"] == 1
    assert first["head_lr"] == pytest.approx(0.5 * config.head_optimizer.lr)  # type: ignore[union-attr]


# Weights


def test_changes_of_weights_are_of_the_same_weights_however_they_are_sharded(means: None) -> None:
    whole, average = noise(3000), noise(3000, seed=1)

    class Part:
        def __init__(self, source: torch.Tensor, world: World) -> None:
            begin, end = (len(source) * rank // world.size for rank in (world.rank, world.rank + 1))
            self.local, self.offset = source[begin:end].clone(), begin

        def shards(self) -> dict[str, Shard]:
            return {"w": Shard(torch.Size([3000]), self.offset, self.local)}

    def measure(world: World) -> dict[str, Any]:
        student = Part(whole, world)
        changes = WeightChanges(cast(Any, student), cast(Any, Part(average, world)), world)
        student.local *= 1.25
        return changes.row()

    (alone,) = in_threads(1, measure)
    assert alone["update_size"] == pytest.approx(0.2)
    for ranks in (2, 3):
        for row in in_threads(ranks, measure):
            assert row == pytest.approx(alone, rel=1e-5)


def test_the_average_lags_behind_weights_that_move() -> None:
    net = engine(0, width=512)
    ema = Ema(net, 0.5, on_host=False)
    changes = WeightChanges(net, ema, ALONE)
    assert changes.row() == {"update_size": 0.0, "ema_distance": 0.0}  # no way to go
    train(net, 1)
    first = changes.row()
    assert first["update_size"] == first["ema_distance"] > 0 == first["ema_follows"]
    ema.update(100)
    half = pytest.approx(first["update_size"] / 2, rel=1e-3)
    assert changes.row() == {"update_size": 0.0, "ema_distance": half, "ema_follows": pytest.approx(0.5, rel=1e-3)}


def test_an_average_that_flees_the_weights_is_told() -> None:
    net = engine(0, width=512)
    ema = Ema(net, 0.5, on_host=False)
    changes = WeightChanges(net, ema, ALONE)
    train(net, 1)
    for weights, average in zip(ema._weights, ema._average, strict=True):
        average.lerp_(weights, -0.25)
    assert changes.row()["ema_follows"] == pytest.approx(-0.25, rel=1e-3)


# The record


def test_a_row_has_them_and_a_resumed_run_the_same(tmp_path: Any, dataset: Any) -> None:
    for run, until, size in (("whole", 4, 8), ("parts", 2, 8), ("parts", 4, 8), ("ones", 4, 1)):
        length = ["train.iterations=4", "train.log_every=2"]
        batch = [f"train.micro_batch={size}", "method.fake_pass=two_pass"]
        config = tiny_config(tmp_path / run, dataset, *length, *batch)
        trainer = Trainer(config, ALONE)
        for done in trainer.iterations():
            if done == until:
                break
        trainer.writer.wait()
    whole, parts, ones = (read_metrics(tmp_path / run)[-1] for run in ("whole", "parts", "ones"))
    assert {"gap", "head_right", "x0_detail", "fake_right/noise_0.25-0.50", "latent_grad_norm"} <= set(whole)
    assert whole["ema_distance"] == parts["ema_distance"] > 0 < whole["update_size"] == parts["update_size"]
    assert whole["data_diversity"] == parts["data_diversity"]
    for name in Ladd.PAIRED:  # micro-batches of one are compared with one another
        assert ones[name] == pytest.approx(whole[name], rel=1e-3)
