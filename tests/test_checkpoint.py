"""Checkpoints on disk, and the moving average."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import (
    DATA,
    assert_same,
    config_in,
    engine,
    in_threads,
    newest,
    save,
    save_at,
    state_of,
    train,
)
from conftest import ALONE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ladd_dist.checkpoints import reader as checkpoint
from ladd_dist.checkpoints.reader import Checkpoint, network_shards, open_newest
from ladd_dist.config import load
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Shard
from ladd_dist.engines.ema import Ema
from ladd_dist.errors import DamagedError, LaddError
from ladd_dist.files.checksums import read_sums, sha256, write_sums


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = engine(0)
    train(net, 3)
    return save_at(config_in(tmp_path), 3, net)


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for tests that put back what they damage."""
    return save_at(config_in(tmp_path_factory.mktemp("flipped")), 3, engine(0))


# Round trip


def test_weights_and_moments_come_back_and_training_goes_on_equally(tmp_path: Path) -> None:
    trained, fresh = engine(0), engine(1)
    train(trained, 3)
    path = save_at(config_in(tmp_path), 3, trained)
    Checkpoint(path, ALONE).load(network_shards("student", fresh))
    fresh.updates = 3
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


def test_state_and_configuration_are_kept(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = save_at(config, 7, engine(0))
    state = Checkpoint(path, ALONE).state
    assert path == tmp_path / "checkpoints" / "step-00000007"
    assert (state.iteration, state.data, state.teacher, state.world_size) == (7, DATA, "abc", 1)
    assert (state.updates, state.engine) == ({"student": 7}, "local")
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


@settings(max_examples=25)
@given(ranged(), st.data())
def test_what_three_ranks_saved_is_read_back_in_any_other_ranges(
    case: tuple[dict[str, Tensor], dict[str, list[int]], dict[str, list[int]]], data: st.DataObject
) -> None:
    tensors, saved_cuts, loaded_cuts = case
    with tempfile.TemporaryDirectory() as folder:
        config = config_in(Path(folder))
        paths = in_threads(3, lambda world: save(config, world, split(tensors, saved_cuts, world.rank)))
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


def test_a_rank_that_owns_nothing_writes_nothing(tmp_path: Path) -> None:
    whole = {"heads/param/w": Shard(torch.Size([4]), 0, torch.arange(4.0))}
    config = config_in(tmp_path)
    path = in_threads(2, lambda world: save(config, world, whole if world.is_main else {}))[0]
    sizes = {name.name: name.stat().st_size for name in path.glob("*.safetensors")}
    assert sizes["rank-00001.safetensors"] < sizes["rank-00000.safetensors"]
    assert torch.equal(Checkpoint(path, ALONE).network("heads")["w"], torch.arange(4.0))


@pytest.mark.parametrize("lost", [0, 4, 8])
def test_a_range_that_no_file_holds_is_damage(tmp_path: Path, lost: int) -> None:
    pieces = [Shard(torch.Size([12]), start, torch.ones(4)) for start in (0, 4, 8) if start != lost]
    config = config_in(tmp_path)
    path = in_threads(2, lambda world: save(config, world, {"student/param/w": pieces[world.rank]}))[0]
    with pytest.raises(DamagedError, match="parts of student/param/w are missing"):
        Checkpoint(path, ALONE)


def test_files_of_fewer_ranks_than_wrote_them_are_damage(tmp_path: Path) -> None:
    config, whole = config_in(tmp_path), {"heads/param/w": Shard(torch.Size([4]), 0, torch.ones(4))}
    path = in_threads(2, lambda world: save(config, world, whole if world.is_main else {}))[0]
    sums = read_sums(path)
    del sums["rank-00001.safetensors"]
    write_sums(path, sums)
    with pytest.raises(DamagedError, match="it has tensors of 1 ranks, not of 2"):
        Checkpoint(path, ALONE)


def test_shards_that_are_views_of_one_buffer_are_saved_apart(tmp_path: Path) -> None:
    buffer = torch.arange(6.0)
    shards = {f"student/param/p{i}": Shard(torch.Size([3]), 0, buffer[3 * i : 3 * i + 3]) for i in range(2)}
    kept = Checkpoint(save(config_in(tmp_path), ALONE, shards), ALONE).network("student")
    assert_same(kept, {"p0": torch.tensor([0.0, 1.0, 2.0]), "p1": torch.tensor([3.0, 4.0, 5.0])})


# Damage


def flip_a_bit(file: Path, position: int = -1, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(bytes(content))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, Path.unlink], ids=["altered", "truncated", "missing"]
)
FILES = pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json", "config.yaml", "SHA256SUMS"])


@DAMAGE
@FILES
def test_a_damaged_file_is_named(saved: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(saved / name)
    with pytest.raises(DamagedError, match=rf"^checkpoint {saved} is damaged \(.*({name}|SHA256SUMS)"):
        Checkpoint(saved, ALONE)


@settings(max_examples=100)
@given(st.data())
def test_a_bit_flipped_anywhere_is_noticed(flipped: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(flipped.iterdir())))
    position, bit = data.draw(st.integers(0, file.stat().st_size - 1)), data.draw(st.integers(0, 7))
    flip_a_bit(file, position, bit)
    try:
        with pytest.raises(DamagedError):
            Checkpoint(flipped, ALONE)
    finally:
        flip_a_bit(file, position, bit)
    Checkpoint(flipped, ALONE)


@settings(max_examples=50)
@given(st.data())
def test_a_file_cut_anywhere_is_noticed(flipped: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(flipped.iterdir())))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with pytest.raises(DamagedError):
            Checkpoint(flipped, ALONE)
    finally:
        file.write_bytes(content)


def test_sha256sum_agrees_with_the_checksums(saved: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=saved, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{n}: OK" for n in ("config.yaml", "rank-00000.safetensors", "state.json")]


def test_every_rank_hears_of_damage_that_one_of_them_finds(tmp_path: Path) -> None:
    config, piece = config_in(tmp_path), Shard(torch.Size([4]), 0, torch.ones(4))
    path = in_threads(2, lambda world: save(config, world, {"student/param/w": piece}))[0]
    cut_short(path / "rank-00001.safetensors")

    def refused(world: World) -> str:
        with pytest.raises(DamagedError) as caught:
            Checkpoint(path, world)
        return str(caught.value)

    assert all("(rank-00001.safetensors is not what" in message for message in in_threads(2, refused))


def test_every_rank_hears_of_an_error_that_one_of_them_has_in_reading(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OSError("Input/output error")])

    def unreliable(folder: Path) -> dict[str, str]:
        for failure in failures:
            raise failure
        return read_sums(folder)

    monkeypatch.setattr(checkpoint, "read_sums", unreliable)

    def refused(world: World) -> str:
        with pytest.raises(DamagedError) as caught:
            Checkpoint(saved, world)
        return str(caught.value)

    assert in_threads(2, refused) == [f"checkpoint {saved} is damaged (Input/output error)"] * 2


def test_ranks_that_see_different_folders_go_on_from_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, net = config_in(tmp_path), engine(0)
    lists = iter([[save_at(config, 2, net)], [save_at(config, 4, net)]])
    monkeypatch.setattr(checkpoint, "candidates", lambda _: next(lists))
    first, second = in_threads(2, lambda world: open_newest(tmp_path, world))
    assert first.path == second.path


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"iteration": 3}'])
def test_a_state_that_is_none_is_damage(saved: Path, text: str) -> None:
    (saved / "state.json").write_text(text)
    write_sums(saved, read_sums(saved) | {"state.json": sha256(saved / "state.json")})
    with pytest.raises(DamagedError, match="RunState"):
        Checkpoint(saved, ALONE)


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
    assert newest(tmp_path) is None
    (tmp_path / "checkpoints" / ".step-00000002").mkdir(parents=True)
    assert newest(tmp_path) is None


def three_in(run_dir: Path) -> tuple[Path, Path, Path]:
    """Whole checkpoints from new to old, the newest pointed to."""
    config, net = config_in(run_dir, "train.keep_checkpoints=3"), engine(0)
    old, middle, new = (save_at(config, iteration, net) for iteration in (2, 4, 10))
    return new, middle, old


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@DAMAGE
@FILES
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    new, middle, old = three_in(tmp_path)
    damage(new / name)
    assert newest(tmp_path) == middle
    damage(middle / name)
    caplog.clear()
    assert newest(tmp_path) == old
    lines = warnings_in(caplog)
    assert len(lines) == 2
    for line, path in zip(lines, (new, middle), strict=True):
        assert line.startswith(f"warning: checkpoint {path} is damaged (")
        assert line.endswith("): PASSED OVER, looking for the newest whole one")


def test_if_all_are_damaged_nothing_is_gone_on_from(tmp_path: Path) -> None:
    for path in three_in(tmp_path):
        cut_short(path / "rank-00000.safetensors")
    with pytest.raises(LaddError) as caught:
        newest(tmp_path)
    remedy = "restore one, or set a new run_dir"
    assert str(caught.value) == f"all checkpoints in {tmp_path / 'checkpoints'} are damaged: {remedy}"


@pytest.mark.parametrize(
    "pointer", [b"", b"step-00000009\n", b"\xff\x00", b"/\n"], ids=["empty", "to nothing", "damaged", "elsewhere"]
)
def test_a_pointer_to_nothing_is_passed_over_for_the_newest_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pointer: bytes
) -> None:
    new, _, _ = three_in(tmp_path)
    (new.parent / "latest").write_bytes(pointer)
    assert newest(tmp_path) == new
    (line,) = warnings_in(caplog)
    assert "PASSED OVER" in line


def test_a_pointer_and_no_checkpoint_is_not_a_new_run(tmp_path: Path) -> None:
    for path in three_in(tmp_path):
        shutil.rmtree(path)
    with pytest.raises(LaddError, match="all checkpoints in .* are damaged"):
        newest(tmp_path)


def test_without_a_pointer_the_newest_whole_one_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new, _, _ = three_in(tmp_path)
    (new.parent / "latest").unlink()
    (new.parent / ".step-00000012").mkdir()
    assert newest(tmp_path) == new
    assert warnings_in(caplog) == []


def test_the_pointer_may_be_set_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, middle, _ = three_in(tmp_path)
    (middle.parent / "latest").write_text(middle.name)
    assert newest(tmp_path) == middle
    assert warnings_in(caplog) == []


# Another configuration

_OTHER = [
    (["seed=1"], "seed=0, but this configuration has 1"),
    (["method.r1_weight=0.5"], "method.r1_weight=0.01, but this configuration has 0.5"),
    (["method.student_times=[1,0.7,0.5,0.2]"], "method.student_times=[1.0, 0.75, 0.5, 0.25], but"),
    (["discriminator.blocks=[1,3]"], "discriminator.blocks=None, but this configuration has [1, 3]"),
    (["student.path=/else"], "student.path=None, but this configuration has /else"),
    (["data.shuffle_seed=5"], "data.shuffle_seed=0, but this configuration has 5"),
    (["train.global_batch=16", "train.micro_batch=16"], "train.global_batch=8, but this configuration has 16"),
    (["train.global_batch=16", "train.micro_batch=16", "discriminator.width=32"], "discriminator.width=16, but"),
]


@pytest.mark.parametrize(("overrides", "words"), _OTHER, ids=[" ".join(overrides) for overrides, _ in _OTHER])
def test_what_makes_the_numbers_cannot_change_on_the_way(saved: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(LaddError) as caught:
        Checkpoint(saved, ALONE).check(config_in(saved.parent.parent, *overrides), "abc")
    message = str(caught.value)
    assert message.startswith(f"checkpoint {saved} was trained with {words}"), message
    assert message.endswith(": restore it, or set a new run_dir")


def test_first_moments_that_were_not_kept_cannot_be_made_up(saved: Path) -> None:
    config = config_in(saved.parent.parent, "student_optimizer.betas=[0.9,0.99]")
    with pytest.raises(LaddError) as caught:
        Checkpoint(saved, ALONE).check(config, "abc")
    assert str(caught.value) == (
        f"checkpoint {saved} has no first moments of the student, for it was trained with student_optimizer.betas="
        "[0.0, 0.99], but this configuration has [0.9, 0.99]: restore it, or set a new run_dir"
    )


def test_another_teacher_cannot_go_on(saved: Path) -> None:
    with pytest.raises(LaddError, match=r"was trained with teacher abc, but teacher\.path=.* is def: restore that"):
        Checkpoint(saved, ALONE).check(config_in(saved.parent.parent), "def")


def test_what_does_not_make_the_numbers_may_change_on_the_way(saved: Path) -> None:
    changes = ["train.iterations=99", "train.micro_batch=2", "method.fake_pass=two_pass", "student_optimizer.lr=1e-6"]
    changes += ["engine=fsdp2", "teacher.placement=shard", "train.checkpoint_every=50", "train.ema_device=cpu"]
    Checkpoint(saved, ALONE).check(config_in(saved.parent.parent, *changes), "abc")


# Moving average


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_ema_follows_its_formula(decay: float, on_host: bool) -> None:
    net = engine(0)
    ema = Ema(net, decay, on_host)
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
    ema = Ema(net, 0.5, on_host=False)
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
    ema = Ema(net, 0.9, on_host=False)
    train(net, 3)
    ema.update(0)
    shards = {f"ema/param/{name}": shard for name, shard in ema.shards().items()}
    path = save(config_in(tmp_path), ALONE, shards)
    other = Ema(engine(1), 0.9, on_host=False)
    Checkpoint(path, ALONE).load({f"ema/param/{name}": shard for name, shard in other.shards().items()})
    assert_same({n: s.local for n, s in other.shards().items()}, {n: s.local for n, s in ema.shards().items()})
