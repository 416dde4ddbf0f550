"""AdamW with 8-bit moments (torchao), uncompiled and on the CPU, as far as that goes: a run has it on GPUs only."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import config_in, save_at
from conftest import ALONE, TINY
from torch import Tensor, nn

from ladd_dist.checkpoints.reader import Checkpoint, network_shards
from ladd_dist.config import OptimizerConfig, load
from ladd_dist.distributed.world import World
from ladd_dist.engines import build
from ladd_dist.engines.base import STATE_KINDS
from ladd_dist.engines.build import check_launch
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


def bytes_of_moments(net: ReplicatedEngine) -> dict[str, int]:
    return {
        name: sum(part.nbytes() for kind in MOMENTS for part in storages(net.shards(kind)[name].local))
        for name in net.shards()
    }


def test_moments_take_the_bytes_that_the_formula_says() -> None:
    for state in ("8bit", "fp32"):
        net = engine(state)
        config = OptimizerConfig(lr=1e-2, state=state)  # type: ignore[arg-type]
        expected = {name: adamw_moments(p.numel(), config) for name, p in net.module.named_parameters()}
        assert bytes_of_moments(net) == expected
        train(net, 0, 2)
        assert bytes_of_moments(net) == expected
    assert adamw_moments(8192, OptimizerConfig(lr=1e-2, state="8bit")) < 0.32 * adamw_moments(8192, config)


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
    net = engine("8bit")
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
    """As every shipped configuration has it: with beta1 = 0 the first moment is never read."""
    trained, other = resumed(tmp_path, beta1=0.0)
    assert all("/exp_avg/" in key for key in differing(state_of(other), state_of(trained)))
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
