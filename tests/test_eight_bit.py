"""AdamW with 8-bit moments (torchao), uncompiled and on the CPU, as far as that goes: a run has it on GPUs only."""

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from checkpoints import config_in, save_at
from conftest import ALONE, NEEDS_VECTORS, TINY
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from ladd_dist.checkpoints.reader import Checkpoint, network_shards
from ladd_dist.config import OptimizerConfig, load
from ladd_dist.distributed.world import World
from ladd_dist.engines import build, eight_bit
from ladd_dist.engines.base import STATE_KINDS
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.eight_bit import EightBitAdamW, chunks, quantizable
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError
from ladd_dist.planning.dry_run.eight_bit import codes, codes_at_once
from ladd_dist.planning.memory import adamw_moments, storages

# Beside the environment, see the Makefile: diffusers looks for torchao, and warns in every process that has it.
FOLDER = Path(sys.prefix) / "8bit"
MOMENTS = STATE_KINDS[1:]
GPU = World(0, 1, 0, torch.device("cuda"))


@pytest.fixture(autouse=True)
def torchao(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torchao, with its update run as it is written: compiling it takes a minute and is done on GPUs."""
    if not FOLDER.is_dir():
        pytest.skip("torchao is not there: `make test` installs it")
    monkeypatch.syspath_prepend(str(FOLDER))
    with torch.compiler.set_stance("force_eager"):
        yield


def engine(state: str, seed: int = 0, beta1: float = 0.0) -> ReplicatedEngine:
    """Two matrices of 8,192 weights, which are quantized, and biases, which are too small for it."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
    config = OptimizerConfig(lr=1e-2, state=state, betas=[beta1, 0.99])  # type: ignore[arg-type]
    return ReplicatedEngine(module, config, torch.float32, ALONE)


def train(net: ReplicatedEngine, first: int, last: int) -> list[float]:
    """Learn a fixed map; the losses."""
    target, losses = torch.randn(64, 64, generator=torch.Generator().manual_seed(9)) / 8, []
    for step in range(first, last):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - torch.tanh(x @ target)).square().mean()
        net.backward(loss)
        net.step(lr=3e-3)
        losses.append(float(loss.detach()))
    return losses


def state_of(net: ReplicatedEngine) -> dict[str, Tensor]:
    """Weights and moments in fp32."""
    return {key: torch.zeros(s.local.numel()).copy_(s.local) for key, s in network_shards("net", net).items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key in one if not torch.equal(one[key], other[key])}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[key] - value).norm() / value.norm()) for key, value in other.items() if value.any())


def weights(net: ReplicatedEngine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.module.named_parameters()}


def bytes_of_moments(net: ReplicatedEngine) -> int:
    shards = [shard for kind in MOMENTS for shard in net.shards(kind).values()]
    return sum({part.data_ptr(): part.nbytes() for shard in shards for part in storages(shard.local)}.values())


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_moments_take_the_bytes_that_the_formula_says(beta1: float) -> None:
    expected = {}
    for state in ("8bit", "fp32"):
        net = engine(state, beta1=beta1)
        config = OptimizerConfig(lr=1e-2, state=state, betas=[beta1, 0.99])  # type: ignore[arg-type]
        expected[state] = adamw_moments([p.numel() for p in net.module.parameters()], config)
        assert bytes_of_moments(net) == expected[state]
        train(net, 0, 2)
        assert bytes_of_moments(net) == expected[state]
    assert expected["8bit"] < 0.32 * expected["fp32"]


SIZES = {"first": 4096, "odd": 256 * 37, "bias": 100, "long": 256 * 61, "last": 256 * 20}


def updated(beta1: float) -> tuple[EightBitAdamW, dict[str, Tensor]]:
    """What five updates make of random tensors, one of which cannot be quantized, by this repository's class."""
    drawn = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=drawn) for name, size in SIZES.items() if quantizable(size)}
    config = OptimizerConfig(lr=1e-2, state="8bit", betas=[beta1, 0.99], weight_decay=0.01)
    ours = EightBitAdamW(weights, config)
    for index in range(5):
        gradients = {name: torch.randn(SIZES[name], generator=drawn) for name in weights}
        ours.step(gradients, 1e-2 / (index + 1), torch.tensor(0.5), torch.tensor(True))
    return ours, weights


def updated_one_by_one(beta1: float) -> tuple[Optimizer, dict[str, Tensor]]:
    """The same by torchao alone."""
    from torchao.optim import AdamW8bit

    drawn = torch.Generator().manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(size, generator=drawn)) for name, size in SIZES.items() if size > 100}
    theirs = AdamW8bit(weights.values(), 1e-2, (beta1, 0.99), weight_decay=0.01)
    for index in range(5):
        for weight in weights.values():
            weight.grad = torch.randn(weight.numel(), generator=drawn) * 0.5
        theirs.param_groups[0]["lr"].fill_(1e-2 / (index + 1))
        theirs.step()
    return theirs, weights


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_chunks_are_updated_as_torchao_does_each_tensor(monkeypatch: pytest.MonkeyPatch, beta1: float) -> None:
    """Bit for bit, in chunks that begin and end within tensors."""
    monkeypatch.setattr(eight_bit, "_CHUNK", 8192)
    ours, weights = updated(beta1)
    theirs, wanted = updated_one_by_one(beta1)
    assert chunks(sum(w.numel() for w in weights.values())) == (5, 7168)
    assert weights.keys() == wanted.keys() == SIZES.keys() - {"bias"}
    assert [name for name in weights if not torch.equal(weights[name], wanted[name])] == []
    for kind in ("exp_avg", "exp_avg_sq") if beta1 else ("exp_avg_sq",):
        for name, moment in ours.moment(kind).items():
            expected = theirs.state[wanted[name]][kind]
            assert torch.equal(moment.codes, expected.codes) and torch.equal(moment.scale, expected.scale)


@NEEDS_VECTORS
def test_one_program_serves_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, as on a GPU: for each length of a tensor torchao would make another, which takes seconds."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(eight_bit, "_CHUNK", 8192)
    with torch.compiler.set_stance("default"):
        counters.clear()
        _, weights = updated(beta1=0.0)
        assert counters["stats"]["unique_graphs"] == 1
    for name, wanted in updated_one_by_one(beta1=0.0)[1].items():
        torch.testing.assert_close(weights[name], wanted.detach(), rtol=0, atol=5e-4)  # of 0.02


@given(st.lists(st.integers(16, 400), min_size=1, max_size=20), st.integers(1, 40))
def test_chunks_are_of_one_length_and_hold_each_element_once(blocks: list[int], limit: int) -> None:
    sizes = [eight_bit.BLOCK * count for count in blocks]
    with patch.object(eight_bit, "_CHUNK", 4 * eight_bit.BLOCK * limit):
        count, length = chunks(sum(sizes))
        weights = {str(index): torch.empty(size, device="meta") for index, size in enumerate(sizes)}
        pieces = EightBitAdamW(weights, OptimizerConfig(lr=1.0, state="8bit")).pieces
    assert length <= 4 * eight_bit.BLOCK * limit and count * length - sum(sizes) < 4 * eight_bit.BLOCK * count
    assert [(p.name, at) for chunk in pieces for p in chunk for at in range(p.first, p.end, eight_bit.BLOCK)] == [
        (name, at) for name, weight in weights.items() for at in range(0, weight.numel(), eight_bit.BLOCK)
    ]
    held = [sum(p.end - p.first for p in chunk) for chunk in pieces]
    assert len(held) == count and held[:-1] == [length] * (count - 1) and 0 < held[-1] <= length


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_training_stays_close_to_fp32_moments(beta1: float) -> None:
    exact, quantized = engine("fp32", beta1=beta1), engine("8bit", beta1=beta1)
    start = weights(exact)
    expected, losses = train(exact, 0, 100), train(quantized, 0, 100)
    assert expected[-1] < 0.2 * expected[0]
    assert losses[-1] == pytest.approx(expected[-1], rel=0.01)
    moved, ways = ({name: p - start[name] for name, p in weights(net).items()} for net in (quantized, exact))
    assert 0 < distance(moved, ways) < 0.04


def test_the_second_moment_wastes_no_code_on_a_sign() -> None:
    net = engine("8bit", beta1=0.9)
    assert [net.shards(kind)["0.weight"].local.signed for kind in MOMENTS] == [True, False]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    net = engine("8bit", beta1=0.9)
    train(net, 0, 3)
    before = state_of(net)
    net.backward(net(torch.full((2, 64), float("nan"))).sum())
    assert not net.step(lr=3e-3).isfinite()
    assert (differing(state_of(net), before), net.updates) == (set(), 3)
    train(net, 3, 4)
    assert net.updates == 4 and differing(state_of(net), before) == before.keys()


def resumed(tmp_path: Path, beta1: float) -> tuple[ReplicatedEngine, ReplicatedEngine]:
    """A net after five steps, and another one that was given its checkpoint."""
    trained, other = engine("8bit", beta1=beta1), engine("8bit", seed=1, beta1=beta1)
    train(trained, 0, 5)
    Checkpoint(save_at(config_in(tmp_path), 5, trained), ALONE).load(network_shards("student", other))
    other.updates = 5
    return trained, other


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit_without_first_moments(tmp_path: Path) -> None:
    """As LADD's shipped configurations have it."""
    trained, other = resumed(tmp_path, beta1=0.0)
    assert differing(state_of(other), state_of(trained)) == set()
    assert train(other, 5, 10) == train(trained, 5, 10)
    assert differing(state_of(other), state_of(trained)) == set()


def test_with_first_moments_a_checkpoint_is_within_their_rounding(tmp_path: Path) -> None:
    """torchao's codes reach from -0.993 to 1: a block with a negative extreme is rounded again when it is read."""
    trained, other = resumed(tmp_path, beta1=0.9)
    far = differing(state_of(other), state_of(trained))
    assert far and all("/exp_avg/" in key for key in far)
    assert distance(state_of(other), state_of(trained)) < 0.01


@pytest.mark.parametrize("key", ["student_optimizer", "head_optimizer"])
def test_a_launch_that_cannot_have_it_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    config = load(TINY, [f"{key}.state=8bit"])
    check_launch(config, GPU)
    with pytest.raises(LaddError) as caught:
        check_launch(config, ALONE)
    assert str(caught.value) == f"{key}.state=8bit needs a GPU, but this run is on the CPU: set {key}.state=fp32"
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(
        LaddError, match=rf"{key}\.state=8bit needs torchao: pip install torchao==0.18.0, or set {key}"
    ):
        check_launch(config, GPU)


def test_a_dry_run_makes_codes_like_torchaos() -> None:
    from torchao.optim import subclass_8bit

    theirs, moments, table = subclass_8bit.quantize_8bit_with_qmap, torch.rand(512, 3).T, torch.linspace(-1, 1, 256)
    wanted, ours = theirs(moments, table), codes(moments, table)
    assert (ours.shape, ours.dtype, ours.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
    with codes_at_once():
        assert subclass_8bit.quantize_8bit_with_qmap is codes
    assert subclass_8bit.quantize_8bit_with_qmap is theirs
