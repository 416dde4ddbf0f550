"""An export's weights: written tensor by tensor, the same as if they had been loaded whole, and how many changed."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from checkpoints import in_threads, save, trained_at
from conftest import ALONE, tiny_config
from counting import Alive
from diffusers import SD3Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Shard
from ladd_dist.engines.blueprint import whole_shards
from ladd_dist.engines.ranges import Range, elements, rows
from ladd_dist.errors import LaddError
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.saving import save_weights
from ladd_dist.models.sd3.transformer import load_transformer
from ladd_dist.models.shards import DIFFUSERS, weight_files

EXAMPLE = PromptEntry(0, "a one", Bucket(32, 32))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in weight_files(folder, DIFFUSERS) for name, t in load_file(file).items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@given(shapes=SHAPES, dtype=st.sampled_from(DTYPES), limit=st.integers(1, 200))
def test_files_hold_all_tensors_and_no_more_bytes_than_the_limit(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, limit: int
) -> None:
    tensors = {f"t{i}": torch.full(shape, i + 0.1) for i, shape in enumerate(shapes)}
    with TemporaryDirectory() as name:
        save_weights(
            folder := Path(name), DIFFUSERS, {n: t.shape for n, t in tensors.items()}, dtype, tensors.get, limit
        )
        assert same(read_all(folder), {n: t.to(dtype) for n, t in tensors.items()})
        files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        assert all(len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit for held in files)
        index = folder / f"{DIFFUSERS}.safetensors.index.json"
        assert index.exists() == (len(files) > 1)
        if len(files) > 1:
            assert json.loads(index.read_text())["metadata"] == {
                "total_size": sum(t.nbytes for f in files for t in f.values())
            }


def test_diffusers_loads_several_files(random_teacher: Path, tmp_path: Path) -> None:
    net = load_transformer(random_teacher, torch.float32)
    net.save_config(tmp_path)
    state = net.state_dict()
    limit = sum(t.nbytes for t in state.values()) // 3
    save_weights(tmp_path, DIFFUSERS, {n: t.shape for n, t in state.items()}, torch.float32, state.__getitem__, limit)
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3
    assert same(SD3Transformer2DModel.from_pretrained(tmp_path).state_dict(), state)


# An export's weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path) -> tuple[Config, Checkpoint]:
    root = tmp_path_factory.mktemp("trained")
    return trained_at(root / "run", root / "latents", f"teacher.path={random_teacher}")


@pytest.mark.parametrize("weights", ["ema", "student"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_those_of_a_student_that_was_loaded_whole(
    trained: tuple[Config, Checkpoint], tmp_path: Path, dtype: torch.dtype, weights: str
) -> None:
    config, checkpoint = trained
    whole = load_student(config, checkpoint, weights, dtype).net
    whole.save_pretrained(tmp_path / "whole")
    folder = export(config, checkpoint, tmp_path / "out", weights, dtype, EXAMPLE) / "transformer"
    assert same(read_all(folder), read_all(tmp_path / "whole"))
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "whole"))
    assert ours == {key: value for key, value in theirs.items() if key != "_name_or_path"}


def test_each_is_read_once_and_no_more_than_one_is_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint = trained_at(tmp_path / "run", tmp_path / "latents")
    sizes = [shape.numel() * 4 for shape in checkpoint.network("ema").shapes.values()]
    with Alive() as whole:
        load_student(config, checkpoint, "ema", torch.bfloat16)
    assert whole.peak > sum(sizes) / 2, "the count sees a network"
    seen: list[str] = []
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, key, *span: seen.append(key) or read(self, key, *span))
    for dtype in DTYPES:
        seen.clear()
        with Alive() as alive:
            export(config, checkpoint, tmp_path / "out", "ema", dtype, EXAMPLE, overwrite=True)
        # The tensor and what it started as in fp32, both of them rounded, and where they differ.
        assert sorted(seen) == sorted(f"ema/param/{name}" for name in checkpoint.network("ema"))
        assert alive.peak <= 4 * max(sizes) < sum(sizes) / 4


@pytest.mark.parametrize("layout", [rows, elements], ids=["fsdp2", "zero3"])
def test_the_shares_of_several_ranks_are_put_together(tmp_path: Path, layout: Callable[..., Range]) -> None:
    config, checkpoint, state = part_of(tmp_path / "one", "nothing")
    several = tiny_config(tmp_path / "three", tmp_path / "latents")

    def save_share(world: World) -> None:
        shares = {name: layout(tensor.shape, world.size, world.rank) for name, tensor in state.items()}
        save(several, world, {
            f"{network}/param/{name}": Shard(tensor.shape, shares[name].offset, flat[: shares[name].held])
            for network in ("student", "ema")
            for name, tensor in state.items()
            for flat in [tensor.flatten()[shares[name].offset :]]
        }, teacher=fingerprint(config.teacher.path))  # fmt: skip

    in_threads(3, save_share)
    whole = export(config, checkpoint, tmp_path / "a", "ema", torch.float32, EXAMPLE)
    found = open_newest(several.run_dir, ALONE)
    assert found and found.state.world_size == 3
    joined = export(several, found, tmp_path / "b", "ema", torch.float32, EXAMPLE)
    assert same(read_all(whole / "transformer"), read_all(joined / "transformer"))


# Students of which a part is trained


def part_of(run_dir: Path, frozen: str, **others: dict[str, Tensor]) -> tuple[Config, Checkpoint, dict[str, Tensor]]:
    """A checkpoint as of a student whose parameters with ``frozen`` in their names are not trained."""
    config = tiny_config(run_dir, run_dir / "latents")
    net = load_transformer(config.teacher.path, torch.float32)
    state = {f"net.{n}": p.data + 0.5 for n, p in net.named_parameters() if frozen not in n}
    networks = {"student": state, "ema": state} | others
    shards = {f"{name}/param/{n}": s for name, held in networks.items() for n, s in whole_shards(held).items()}
    return config, Checkpoint(save(config, ALONE, shards, teacher=fingerprint(config.teacher.path)), ALONE), state


def test_what_was_not_trained_is_the_starts(tmp_path: Path) -> None:
    config, checkpoint, state = part_of(tmp_path, "blocks.1.")
    start = read_all(Path(config.teacher.path) / "transformer")
    assert 0 < len(state) < len(start) - 1
    folder = export(config, checkpoint, tmp_path / "out", "ema", torch.float32, EXAMPLE)
    expected = {name: state.get(f"net.{name}", tensor) for name, tensor in start.items()}
    assert same(read_all(folder / "transformer"), expected)
    assert same(load_student(config, checkpoint, "student", torch.float32).net.state_dict(), expected)
    trained = sum(tensor.numel() for tensor in state.values())
    assert (
        f"\n100% of the {trained:,} trained weights differ from the start's.\n" in (folder / "README.md").read_text()
    )


def test_a_trained_parameter_that_is_missing_is_named(tmp_path: Path) -> None:
    _, _, state = part_of(tmp_path / "whole", "blocks")
    missing = "net.proj_out.bias"
    config, checkpoint, _ = part_of(tmp_path, "blocks", ema={name: state[name] for name in state if name != missing})
    load_student(config, checkpoint, "student", torch.float32)
    with pytest.raises(LaddError, match=rf"does not fit the student at .* \({missing} differs\): pass the run's own"):
        load_student(config, checkpoint, "ema", torch.float32)


OTHERS = {"name": {"net.of_another": torch.zeros(4)}, "shape": {"net.proj_out.bias": torch.zeros(5)}, "none": {}}


@pytest.mark.parametrize("state", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_student_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    config, checkpoint, _ = part_of(tmp_path, "blocks", ema=state, student=state, heads={"w": torch.zeros(2)})
    with pytest.raises(LaddError, match=f"\\({next(iter(state), 'all')} differs\\): pass the run's own"):
        export(config, checkpoint, tmp_path / "out", "student", torch.float32, EXAMPLE)
    assert not (tmp_path / "out").exists()


# How many changed


def test_changes_are_counted_before_and_after_rounding() -> None:
    start = torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.bfloat16)  # steps of rounding are 2^-7 from 1 on
    changed = Changed(torch.bfloat16)
    changed.count(torch.tensor([1.0, 1.0 + 2**-10, 1.0 + 2**-7, 2.0 + 2**-9]), start)
    assert (changed.weights, changed.exact, changed.rounded) == (4, 3, 1)
    assert str(changed) == "25% of the 4 trained weights differ from the start's in bfloat16, 75% in float32"
    assert changed.problem(1e-6) is None
    changed.count(torch.full((9,), 1 + 2**-10), torch.ones(9))
    problem = changed.problem(1e-6)
    assert problem and problem.startswith(
        "7.69% of the 13 trained weights differ from the start's in bfloat16, 92.3% in"
    )
    assert (
        "student_optimizer.lr=1e-06 are mostly lost in rounding. Export with --dtype fp32, or train longer" in problem
    )


def test_a_student_that_hardly_moved_is_told_to_train_longer() -> None:
    changed = Changed(torch.float32)
    changed.count(torch.tensor([1.0] * 10 + [2.0]), torch.ones(11))
    assert str(changed) == "9.09% of the 11 trained weights differ from the start's"
    assert (
        changed.problem(0.0)
        == f"{changed}: student_optimizer.lr=0 was too small to show. Train longer, or with a larger one"
    )


def test_an_export_says_what_rounding_takes_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ladd_dist")
    config = tiny_config(tmp_path, tmp_path / "latents")
    net = load_transformer(config.teacher.path, torch.float32)
    state = {f"net.{n}": p.data * (1 + 2**-16) for n, p in net.named_parameters()}  # a 256th of bf16's steps or less
    shards = {f"{kind}/param/{n}": s for kind in ("student", "ema") for n, s in whole_shards(state).items()}
    checkpoint = Checkpoint(save(config, ALONE, shards, teacher=fingerprint(config.teacher.path)), ALONE)
    said = {}
    for dtype in (torch.float32, torch.bfloat16):
        caplog.clear()
        folder = export(config, checkpoint, tmp_path / "out", "ema", dtype, EXAMPLE, overwrite=True)
        said[dtype] = [record.getMessage() for record in caplog.records]
        assert f"\n{said[dtype][0]}.\n" in (folder / "README.md").read_text()
    assert len(said[torch.float32]) == 1
    line, warning = said[torch.bfloat16]
    assert warning.startswith(f"warning: {line}: changes of a training with student_optimizer.lr=")
