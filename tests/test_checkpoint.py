"""Checkpoints on disk, and the moving average."""

import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ladd_dist import checkpoint
from ladd_dist.checkpoint import Checkpoint, find, network_shards, save
from ladd_dist.config import Config, OptimizerConfig, load
from ladd_dist.distributed import World
from ladd_dist.ema import Ema
from ladd_dist.engines.base import STATE_KINDS, Shard
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.errors import LaddError

DATA = {"epoch": 1, "samples": 16}
CPU = torch.device("cpu")


def engine(seed: int, width: int = 5) -> ReplicatedEngine:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    return ReplicatedEngine(module, OptimizerConfig(lr=0.1), torch.float32, ALONE)


def train(net: ReplicatedEngine, steps: int, seed: int = 0) -> None:
    inputs = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        net.backward(net(torch.randn(4, 3, generator=inputs)).square().sum())
        net.step(lr=0.1)


def state_of(net: ReplicatedEngine) -> dict[str, Tensor]:
    return {f"{kind}/{name}": s.local.clone() for kind in STATE_KINDS for name, s in net.shards(kind).items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def config_in(run_dir: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, run_dir / "latents", *overrides)


def save_at(config: Config, iteration: int, net: ReplicatedEngine) -> Path:
    return save(config, ALONE, {}, network_shards("student", net), iteration, DATA, "abc")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = engine(0)
    train(net, 3)
    return save_at(config_in(tmp_path), 3, net)


# Round trip


def test_weights_and_moments_come_back_and_training_goes_on_equally(tmp_path: Path) -> None:
    trained, fresh = engine(0), engine(1)
    train(trained, 3)
    path = save_at(config_in(tmp_path), 3, trained)
    Checkpoint(path, ALONE).load(network_shards("student", fresh))
    fresh.set_updates(3)
    assert_same(state_of(fresh), state_of(trained))
    train(trained, 2, seed=5)
    train(fresh, 2, seed=5)
    assert_same(state_of(fresh), state_of(trained))


def test_update_count_matters_to_what_follows(tmp_path: Path) -> None:
    trained, fresh = engine(0), engine(1)
    train(trained, 3)
    Checkpoint(save_at(config_in(tmp_path), 3, trained), ALONE).load(network_shards("student", fresh))
    train(trained, 1)
    train(fresh, 1)
    assert not torch.equal(state_of(fresh)["param/0.weight"], state_of(trained)["param/0.weight"])


def test_a_checkpoint_does_not_change_with_the_weights_it_was_made_of(tmp_path: Path) -> None:
    net = engine(0)
    path, before = save_at(config_in(tmp_path), 0, net), state_of(net)
    train(net, 2)
    kept = Checkpoint(path, ALONE).network("student")
    assert_same(
        {f"param/{name}": value.flatten() for name, value in kept.items()},
        {k: v for k, v in before.items() if k.startswith("param")},
    )


def test_state_and_configuration_are_kept(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = save_at(config, 7, engine(0))
    state = Checkpoint(path, ALONE).state
    assert path == tmp_path / "checkpoints" / "step-00000007"
    assert (state.iteration, state.data, state.teacher, state.world_size) == (7, DATA, "abc", 1)
    assert load(path / "config.yaml") == config


def test_networks_come_back_whole_and_shaped(saved: Path) -> None:
    weights = Checkpoint(saved, ALONE).network("student")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "0.weight": (5, 3),
        "0.bias": (5,),
        "2.weight": (2, 5),
        "2.bias": (2,),
    }


# Ranges


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank that is a thread: meets the others at a barrier and gathers through a shared list."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    box: list[Any] = field(default_factory=list)

    def barrier(self) -> None:
        self.meeting.wait(timeout=30)

    def gather(self, value: object) -> list[Any]:
        self.box[self.rank] = value
        self.barrier()
        values = list(self.box)
        self.barrier()
        return values


def in_threads(size: int, function: Any) -> list[Any]:
    """``function(world)`` on every rank at once."""
    meeting, box = threading.Barrier(size), [None] * size
    worlds = [ThreadWorld(rank, size, rank, CPU, meeting, box) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, worlds))


def split(tensors: dict[str, Tensor], cuts: dict[str, list[int]], rank: int) -> dict[str, Shard]:
    """A rank's ranges, ``cuts`` being the ends of all but the last rank's."""
    shards = {}
    for key, tensor in tensors.items():
        edges = [0, *cuts[key], tensor.numel()]
        shards[key] = Shard(tensor.shape, edges[rank], tensor.flatten()[edges[rank] : edges[rank + 1]].clone())
    return shards


@st.composite
def ranged(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, list[int]], dict[str, list[int]]]:
    """Tensors, cut into three ranges when saved (empty ones too) and two when loaded."""
    shapes = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=3))
    tensors = {f"student/param/p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    ends = {key: st.integers(0, tensor.numel()) for key, tensor in tensors.items()}
    saved = {key: sorted(draw(st.lists(end, min_size=2, max_size=2))) for key, end in ends.items()}
    return tensors, saved, {key: [draw(end)] for key, end in ends.items()}


@settings(max_examples=25, deadline=None)
@given(ranged(), st.data())
def test_what_three_ranks_saved_is_read_back_in_any_other_ranges(
    case: tuple[dict[str, Tensor], dict[str, list[int]], dict[str, list[int]]], data: st.DataObject
) -> None:
    tensors, saved_cuts, loaded_cuts = case
    with tempfile.TemporaryDirectory() as folder:
        config = config_in(Path(folder))
        paths = in_threads(
            3, lambda world: save(config, world, split(tensors, saved_cuts, world.rank), {}, 1, DATA, "abc")
        )
        opened = Checkpoint(paths[0], ALONE)
        assert opened.state.world_size == 3
        for key, tensor in tensors.items():
            offset = data.draw(st.integers(0, tensor.numel()))
            length = data.draw(st.integers(0, tensor.numel() - offset))
            assert torch.equal(opened.read(key, offset, length), tensor.flatten()[offset : offset + length])

        def load_share(world: World) -> dict[str, Shard]:
            shards = {
                k: replace(s, local=s.local.zero_()) for k, s in split(tensors, loaded_cuts, world.rank).items()
            }
            Checkpoint(paths[0], world).load(shards)
            return shards

        for rank, shards in enumerate(in_threads(2, load_share)):
            expected = split(tensors, loaded_cuts, rank)
            assert_same({k: s.local for k, s in shards.items()}, {k: s.local for k, s in expected.items()})


def test_replicated_tensors_are_written_by_the_first_rank_alone(tmp_path: Path) -> None:
    whole = {"heads/param/w": Shard(torch.Size([4]), 0, torch.arange(4.0))}
    config = config_in(tmp_path)
    path = in_threads(2, lambda world: save(config, world, {}, whole, 1, DATA, "abc"))[0]
    sizes = {name.name: name.stat().st_size for name in path.glob("*.safetensors")}
    assert sizes["rank-00001.safetensors"] < sizes["rank-00000.safetensors"]
    assert torch.equal(Checkpoint(path, ALONE).network("heads")["w"], torch.arange(4.0))


@pytest.mark.parametrize("lost", [(0, 4), (4, 8), (8, 12)])
def test_a_range_that_no_file_holds_is_an_error(tmp_path: Path, lost: tuple[int, int]) -> None:
    pieces = [Shard(torch.Size([12]), start, torch.ones(4)) for start in (0, 4, 8) if start != lost[0]]
    config = config_in(tmp_path)
    path = in_threads(
        2, lambda world: save(config, world, {"student/param/w": pieces[world.rank]}, {}, 1, DATA, "abc")
    )[0]
    opened = Checkpoint(path, ALONE)
    with pytest.raises(LaddError, match="lacks part of student/param/w: remove the folder"):
        opened.read("student/param/w", 0, 12)


def test_shards_that_are_views_of_one_buffer_are_saved_apart(tmp_path: Path) -> None:
    buffer = torch.arange(6.0)
    shards = {f"student/param/p{i}": Shard(torch.Size([3]), 0, buffer[3 * i : 3 * i + 3]) for i in range(2)}
    kept = Checkpoint(save(config_in(tmp_path), ALONE, shards, {}, 1, DATA, "abc"), ALONE).network("student")
    assert_same(kept, {"p0": torch.tensor([0.0, 1.0, 2.0]), "p1": torch.tensor([3.0, 4.0, 5.0])})


# Damage


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, Path.unlink], ids=["altered", "truncated", "missing"])
def test_a_damaged_tensor_file_is_named_with_the_remedy(saved: Path, damage: Any) -> None:
    file = saved / "rank-00000.safetensors"
    damage(file)
    with pytest.raises(LaddError) as caught:
        Checkpoint(saved, ALONE)
    assert str(caught.value) == (
        f"checkpoint file {file} is damaged: remove the folder {saved} to go on from the one before it"
    )


def test_every_rank_hears_of_damage_that_one_of_them_finds(tmp_path: Path) -> None:
    config, piece = config_in(tmp_path), Shard(torch.Size([4]), 0, torch.ones(4))
    path = in_threads(2, lambda world: save(config, world, {}, {"student/param/w": piece}, 1, DATA, "abc"))[0]
    cut_short(path / "rank-00001.safetensors")

    def refused(world: World) -> str:
        with pytest.raises(LaddError) as caught:
            Checkpoint(path, world)
        return str(caught.value)

    assert all("rank-00001.safetensors is damaged" in message for message in in_threads(2, refused))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"iteration": 3}'])
def test_a_damaged_state_is_named_with_the_remedy(saved: Path, text: str) -> None:
    (saved / "state.json").write_text(text)
    with pytest.raises(LaddError, match=r"step-00000003/state\.json is damaged .*: remove the folder"):
        Checkpoint(saved, ALONE)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_state_cut_anywhere_is_an_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    path = save_at(config_in(run_dir), 3, engine(0))
    content = (path / "state.json").read_text().rstrip()
    (path / "state.json").write_text(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(LaddError, match=r"state\.json is damaged"):
        Checkpoint(path, ALONE)


def test_a_network_of_other_widths_is_an_error_that_names_the_tensor(saved: Path) -> None:
    with pytest.raises(LaddError) as caught:
        Checkpoint(saved, ALONE).load(network_shards("student", engine(0, width=6)))
    message = str(caught.value)
    assert "student/param/0.weight of shape (5, 3), but this configuration needs (6, 3)" in message
    assert str(saved / "config.yaml") in message and "set run_dir to a new folder" in message


def test_a_network_with_more_tensors_is_an_error(saved: Path) -> None:
    with pytest.raises(LaddError, match=r"has student/param/extra of shape \(\)"):
        Checkpoint(saved, ALONE).load({"student/param/extra": Shard(torch.Size([2]), 0, torch.zeros(2))})


# Which one is the newest


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    (tmp_path / "checkpoints" / ".step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert find(tmp_path) is None


def test_the_pointer_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, net = config_in(tmp_path), engine(0)
    first = save_at(config, 2, net)

    def killed(root: Path, name: str) -> None:
        assert (root / name / "state.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(config, 4, net)
    assert find(tmp_path) == first
    Checkpoint(first, ALONE)
    monkeypatch.undo()
    assert save_at(config, 4, net) == find(tmp_path)


@pytest.mark.parametrize("function", ["save_file", "_sha256", "RunState"])
def test_a_save_that_dies_leaves_the_one_before_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    config, net = config_in(tmp_path), engine(0)
    first = save_at(config, 2, net)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, function, killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(config, 4, net)
    assert [path.name for path in sorted(first.parent.glob("*step*"))] == [".step-00000004", "step-00000002"]
    assert find(tmp_path) == first
    monkeypatch.undo()
    train(net, 1)
    second = save_at(config, 4, net)
    assert find(tmp_path) == second
    assert_same(
        Checkpoint(second, ALONE).network("student"), {k: v.detach() for k, v in net.module.named_parameters()}
    )
    assert not (first.parent / ".step-00000004").exists()


@pytest.mark.parametrize("pointer", [None, "", "step-00000009\n"], ids=["missing", "empty", "to nothing"])
def test_without_a_good_pointer_the_newest_whole_one_counts(tmp_path: Path, pointer: str | None) -> None:
    config, net = config_in(tmp_path, "train.keep_checkpoints=3"), engine(0)
    for iteration in (2, 10, 4):
        save_at(config, iteration, net)
    root = tmp_path / "checkpoints"
    (root / "latest").unlink()
    if pointer is not None:
        (root / "latest").write_text(pointer)
    (root / ".step-00000012").mkdir()
    (root / ".step-00000012" / "state.json").write_text("{}")
    (root / "step-00000014").mkdir()
    assert find(tmp_path) == root / "step-00000010"


def test_removing_the_newest_folder_goes_back_to_the_one_before(tmp_path: Path) -> None:
    config, net = config_in(tmp_path), engine(0)
    first, second = save_at(config, 2, net), save_at(config, 4, net)
    shutil.rmtree(second)
    assert find(tmp_path) == first


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    config, net = config_in(tmp_path, f"train.keep_checkpoints={keep}"), engine(0)
    for iteration in range(1, 6):
        save_at(config, iteration, net)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-{i:08d}" for i in range(6 - keep, 6))]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    config, net = config_in(tmp_path), engine(0)
    save_at(config, 2, net)
    train(net, 1)
    path = save_at(config, 2, net)
    assert_same(Checkpoint(path, ALONE).network("student"), {k: v.detach() for k, v in net.module.named_parameters()})
    assert json.loads((path / "state.json").read_text())["iteration"] == 2


# Moving average


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_ema_follows_its_formula(decay: float) -> None:
    net = engine(0)
    ema = Ema(net, decay)
    expected = {name: p.detach().clone() for name, p in net.module.named_parameters()}
    for n in range(12):
        train(net, 1, seed=n)
        ema.update(n)
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * p.detach() for name, p in net.module.named_parameters()}
    for name, shard in ema.shards().items():
        torch.testing.assert_close(shard.local.view(shard.shape), expected[name], rtol=1e-5, atol=1e-7)


def test_applied_swaps_the_average_in_and_the_weights_back() -> None:
    net = engine(0)
    ema = Ema(net, 0.5)
    train(net, 3)
    ema.update(0)
    weights = {name: s.local.clone() for name, s in net.shards().items()}
    average = {name: s.local.clone() for name, s in ema.shards().items()}
    assert not torch.equal(weights["0.weight"], average["0.weight"])
    with pytest.raises(KeyboardInterrupt), ema.applied():
        assert_same({name: s.local for name, s in net.shards().items()}, average)
        raise KeyboardInterrupt
    assert_same({name: s.local for name, s in net.shards().items()}, weights)
    assert_same({name: s.local for name, s in ema.shards().items()}, average)


def test_ema_goes_into_a_checkpoint_and_back(tmp_path: Path) -> None:
    net = engine(0)
    ema = Ema(net, 0.9)
    train(net, 3)
    ema.update(0)
    shards = {f"ema/param/{name}": shard for name, shard in ema.shards().items()}
    path = save(config_in(tmp_path), ALONE, {}, shards, 1, DATA, "abc")
    other = Ema(engine(1), 0.9)
    Checkpoint(path, ALONE).load({f"ema/param/{name}": shard for name, shard in other.shards().items()})
    assert_same({n: s.local for n, s in other.shards().items()}, {n: s.local for n, s in ema.shards().items()})
