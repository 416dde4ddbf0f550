"""Averages in host memory: the same as beside the weights, bit for bit, whatever happens to the run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
import torch
from checkpoints import engine, train
from conftest import ALONE, tiny_config
from ranks import ranks
from recorded import rows_of, tensors_of
from torch import Tensor

import ladd_dist.engines.ema as module
from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.ema import Ema
from ladd_dist.training.trainer import Trainer

ITERATIONS = 6


def run_to(world: World, config: Config, until: int) -> None:
    """Train on from the newest checkpoint, and leave after so many iterations."""
    trainer = Trainer(config, world)
    for done in trainer.iterations():
        if done == until:
            break
    trainer.writer.wait()


@pytest.mark.parametrize("name", ["local", "fsdp2"])
def test_averages_in_host_memory_are_the_same_through_preview_and_resume(
    tmp_path: Path, dataset: Path, name: str
) -> None:
    settings = [
        f"engine={name}",
        "train.micro_batch=null",
        f"train.iterations={ITERATIONS}",
        "train.preview_every=3",
    ]
    same, host = (
        tiny_config(tmp_path / place, dataset, *settings, f"train.ema_device={place}") for place in ("same", "cpu")
    )
    for config, until in ((same, ITERATIONS), (host, 4), (host, ITERATIONS)):
        if name == "local":
            run_to(ALONE, config, until)
        else:
            ranks(2)(run_to, config, until)
    ours, theirs = tensors_of(tmp_path / "cpu"), tensors_of(tmp_path / "same")
    assert ours.keys() == theirs.keys() and any(key.startswith("ema/") for key in ours)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert rows_of(tmp_path / "cpu") == rows_of(tmp_path / "same")
    for picture in ("00000003/32x32.png", "00000006/64x32.png"):
        drawn, expected = (tmp_path / place / "previews" / picture for place in ("cpu", "same"))
        assert drawn.read_bytes() == expected.read_bytes()


class Held:
    """Weights on their way to host memory for an average that has begun to move, until somebody waits for it."""

    def __init__(self, net: Engine, ema: Ema, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waited_for, wait = Event(), ema.wait
        monkeypatch.setattr(module, "in_host_memory", self._arrive)
        ema.update(100)

        def waiting() -> None:
            self.waited_for.set()
            wait()

        monkeypatch.setattr(ema, "wait", waiting)
        assert net.before_update == wait
        net.before_update = waiting

    def _arrive(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        assert self.waited_for.wait(60), "nobody waits for the average"
        yield from tensors


def of_weights(net: Engine) -> dict[str, Tensor]:
    return {name: shard.local.clone() for name, shard in net.shards().items()}


def trained() -> tuple[Engine, Ema, dict[str, Tensor]]:
    """A network after an update, its average in host memory from before, and that average's values."""
    net = engine(0)
    ema = Ema(net, 0.5, on_host=True)
    first = of_weights(net)
    train(net, 1)
    return net, ema, first


def test_an_average_moves_beside_the_passes_and_has_arrived_when_weights_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, ema, first = trained()
    second = of_weights(net)
    held = Held(net, ema, monkeypatch)
    assert not held.waited_for.is_set()
    train(net, 1)
    assert held.waited_for.is_set() and not same(of_weights(net), second)
    assert same({name: shard.local for name, shard in ema.shards().items()}, halfway(first, second))


def halfway(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: first[name].lerp(second[name], 0.5) for name in first}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("how", ["shards", "applied"])
def test_whoever_reads_an_average_waits_for_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, ema, first = trained()
    held = Held(net, ema, monkeypatch)
    read = applied(ema, net) if how == "applied" else {name: shard.local for name, shard in ema.shards().items()}
    assert held.waited_for.is_set() and same(read, halfway(first, of_weights(net)))


def applied(ema: Ema, net: Engine) -> dict[str, Tensor]:
    with ema.applied():
        return of_weights(net)


def test_an_average_that_cannot_move_is_an_error_before_the_next_update(monkeypatch: pytest.MonkeyPatch) -> None:
    net, ema, _ = trained()
    monkeypatch.setattr(module, "in_host_memory", raises)
    ema.update(1)
    second = of_weights(net)
    with pytest.raises(MemoryError, match="no room"):
        train(net, 1)
    assert same(of_weights(net), second)


def raises(_: Sequence[Tensor]) -> Iterator[Tensor]:
    raise MemoryError("no room")
