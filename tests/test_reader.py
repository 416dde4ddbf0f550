"""The reader: order, ranks, resuming and noise by sample; a dataset held against the run."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, BUCKETS, PER_BUCKET, TEACHER, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from latents import copy_of, rows_of, write_fewer
from launch import run_ranks
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ladd_dist.config import Config
from ladd_dist.data import reader as reader_module
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.check import check_dataset
from ladd_dist.data.mds import Manifest, from_bits
from ladd_dist.data.reader import LatentReader
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.noise import attempt_seed, image_noise, step_draws
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.models.fingerprint import fingerprint

Ids = list[list[int]]

# Reader


def reader_of(config: Config, world: World = ALONE) -> LatentReader:
    return LatentReader(config, Manifest.read(config.data.path), world)


def ids_of(reader: Iterable[list[Batch]], count: int) -> Ids:
    """The ids of the next global batches."""
    return [[i for batch in micro for i in batch.ids] for micro in islice(reader, count)]


@pytest.fixture(scope="module")
def reader_config(dataset: Path) -> Config:
    return tiny_config(dataset.parent / "run", dataset)


@pytest.fixture(scope="module")
def order(reader_config: Config) -> Ids:
    """The uninterrupted order over more than three epochs of nine batches."""
    return ids_of(reader_of(reader_config), 32)


@pytest.fixture(scope="module")
def bucket_of(dataset: Path) -> dict[int, str]:
    return {row["id"]: row["bucket"] for row in rows_of(dataset)}


def test_every_global_batch_holds_one_bucket(order: Ids, bucket_of: dict[int, str]) -> None:
    buckets = [{bucket_of[i] for i in batch} for batch in order]
    assert {len(names) for names in buckets} == {1}
    assert len({name for names in buckets for name in names}) == 3


def test_an_epoch_visits_every_sample_once_and_the_next_in_another_order(order: Ids) -> None:
    first, second = sum(order[:9], []), sum(order[9:18], [])
    assert sorted(first) == sorted(second) == list(range(72))
    assert first != second


def test_samples_that_fill_no_batch_are_left_out_of_an_epoch(dataset: Path) -> None:
    config = tiny_config(dataset, dataset, "train.global_batch=5", "train.micro_batch=5")
    ids = sum(ids_of(reader_of(config), 3 * 4), [])
    assert len(set(ids)) == len(ids) == 60


def test_batches_carry_what_the_dataset_holds(dataset: Path, reader_config: Config) -> None:
    rows = {row["id"]: row for row in rows_of(dataset)}
    (batch,) = next(iter(reader_of(reader_config)))
    for i, number in enumerate(batch.ids):
        assert torch.equal(batch.latents[i], from_bits(rows[number]["latent"].copy()))
        assert torch.equal(batch.cond.context[i], from_bits(rows[number]["context"].copy()))
        assert torch.equal(batch.cond.pooled[i], from_bits(rows[number]["pooled"].copy()))
        assert batch.bucket == rows[number]["bucket"]
    assert batch.latents.dtype == torch.float32


@pytest.mark.parametrize(
    "overrides", [["train.micro_batch=2"], ["data.workers=2"], ["data.workers=2", "train.micro_batch=2"]]
)
def test_order_does_not_depend_on_micro_batches_or_loader_processes(
    dataset: Path, order: Ids, overrides: list[str]
) -> None:
    config = tiny_config(dataset, dataset, "method.fake_pass=two_pass", *overrides)
    assert run_ranks(_ids_from, config, None, 11) == [order[:11]]


def _partners(world: World, config: Config, count: int) -> dict[int, tuple[str, bytes]]:
    """Of each sample: its bucket and the conditioning that is wrong for it."""
    found = {}
    for batch in (batch for micro in islice(reader_of(config, world), count) for batch in micro):
        assert batch.mismatched is not None and len(batch.mismatched.context) == len(batch.ids)
        for number, *cond in zip(batch.ids, *batch.mismatched, strict=True):
            found[number] = (batch.bucket, b"".join(part.numpy().tobytes() for part in cond))
    return found


def test_a_samples_mismatched_prompt_is_its_own_whatever_ranks_and_micro_batches(dataset: Path) -> None:
    rows = rows_of(dataset)
    expected = {}
    for bucket in BUCKETS:
        ours = [row for row in rows if row["bucket"] == bucket]
        for at, row in enumerate(ours):
            other = next(o for o in ours[at:] + ours if o["prompt"] != row["prompt"])
            bits = b"".join(from_bits(other[key].copy()).numpy().tobytes() for key in ("context", "pooled"))
            expected[row["id"]] = (bucket, bits)
    settings = ["method.mismatched_weight=1", "method.fake_pass=two_pass"]
    for micro in (8, 2):
        assert _partners(ALONE, tiny_config(dataset, dataset, *settings, f"train.micro_batch={micro}"), 9) == expected
    config = tiny_config(dataset, dataset, *settings, "train.micro_batch=1", "data.workers=2")
    first, second = run_ranks(_partners, config, 9, size=2)
    assert first | second == expected and not first.keys() & second.keys()


def test_no_batch_holds_a_mismatched_prompt_unless_asked(reader_config: Config) -> None:
    (batch,) = next(iter(reader_of(reader_config)))
    assert batch.mismatched is None


def test_shuffle_seed_changes_the_order(dataset: Path, order: Ids) -> None:
    assert ids_of(reader_of(tiny_config(dataset, dataset, "data.shuffle_seed=1")), 9) != order[:9]


@settings(max_examples=8)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=4))
def test_a_run_stopped_anywhere_goes_on_with_the_next_batch(
    reader_config: Config, order: Ids, lengths: list[int]
) -> None:
    seen: Ids = []
    state = None
    for length in lengths:
        reader = reader_of(reader_config)
        if state is not None:
            reader.load_state_dict(json.loads(json.dumps(state)))
        seen += ids_of(reader, min(length, 32 - len(seen)))
        state = reader.state_dict()
    assert seen == order[: len(seen)]


@pytest.mark.parametrize("done", [8, 9, 10, 18])
def test_resuming_at_the_end_of_an_epoch_goes_on_with_the_next(reader_config: Config, order: Ids, done: int) -> None:
    reader = reader_of(reader_config)
    ids_of(reader, done)
    resumed = reader_of(reader_config)
    resumed.load_state_dict(reader.state_dict())
    assert ids_of(resumed, 3) == order[done : done + 3]


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=3))
def test_a_reader_goes_to_another_position_while_it_is_iterated(
    reader_config: Config, order: Ids, moves: list[tuple[int, int]]
) -> None:
    reader = reader_of(reader_config)
    assert _ids_over_moves(reader, moves) == [i for start, count in moves for i in order[start : start + count]]


def _ids_over_moves(reader: LatentReader, moves: list[tuple[int, int]]) -> Ids:
    batches, seen = iter(reader), []
    for start, count in moves:
        reader.load_state_dict(position(start))
        seen += ids_of(batches, count)
        assert reader.state_dict() in (position(start + count), {"epoch": (start + count) // 9 - 1, "samples": 72})
    return seen


def position(iteration: int) -> dict[str, int]:
    """Nine global batches of eight samples are an epoch."""
    return {"epoch": iteration // 9, "samples": iteration % 9 * 8}


def _moving_ranks(world: World, config: Config, moves: list[tuple[int, int]]) -> Ids:
    return _ids_over_moves(reader_of(config, world), moves)


def test_ranks_with_loader_processes_go_back_together_while_they_read_ahead(dataset: Path, order: Ids) -> None:
    config = tiny_config(dataset, dataset, "train.micro_batch=4", "data.workers=2")
    moves = [(0, 4), (2, 3), (12, 8), (1, 3)]
    shares = run_ranks(_moving_ranks, config, moves, size=2)
    expected = [sorted(i) for start, count in moves for i in order[start : start + count]]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == expected


def test_another_attempt_is_another_order_of_the_same_samples(reader_config: Config, order: Ids) -> None:
    reader = reader_of(reader_config)
    batches, seen = iter(reader), []
    for attempt in (0, 1, 2, 1):
        reader.load_state_dict(position(9), attempt)
        seen.append(ids_of(batches, 18))
    assert seen[0] == order[9:27] and seen[1] == seen[3]
    assert all(sorted(sum(ids[:9], [])) == sorted(sum(ids[9:], [])) == list(range(72)) for ids in seen)
    assert seen[1][:9] != seen[0][:9] != seen[2][:9] != seen[1][:9] != seen[1][9:]


def test_memory_is_pinned_for_a_gpu_alone(reader_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(reader_module, "DataLoader", lambda *_, pin_memory, **__: asked.append(pin_memory) or [[]])
    for device in ("cpu", "cuda"):
        next(iter(reader_of(reader_config, replace(ALONE, device=torch.device(device)))))
    assert asked == [False, True]


def _ids_from(world: World, config: Config, state: dict[str, int] | None, count: int) -> Ids:
    reader = reader_of(config, world)
    if state is not None:
        reader.load_state_dict(state)
    return ids_of(reader, count)


@pytest.fixture(scope="module")
def uneven(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Buckets that are no multiples of a batch: Streaming's own order of them depends on the number of ranks."""
    data = write_fewer(dataset, tmp_path_factory.mktemp("uneven") / "latents", [19, 21, 22])
    return tiny_config(data.parent, data, "train.global_batch=4", "train.micro_batch=null", "data.workers=2")


@pytest.fixture(scope="module")
def uneven_order(uneven: Config) -> Ids:
    """Of one process over an epoch of fourteen batches and more."""
    return ids_of(reader_of(uneven.model_copy(update={"data": uneven.data.model_copy(update={"workers": 0})})), 22)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_global_batches_of_one_process(uneven: Config, uneven_order: Ids, size: int) -> None:
    shares = run_ranks(_ids_from, uneven, None, 22, size=size)
    assert {len(ids) for share in shares for ids in share} == {4 // size}
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == uneven_order
    assert all(len(set(ids)) == len(ids) for ids in (sum(uneven_order[:14], []), sum(uneven_order[14:], [])))


def test_another_number_of_ranks_goes_on_where_one_process_stopped(uneven: Config, uneven_order: Ids) -> None:
    alone = reader_of(uneven)
    assert ids_of(alone, 11) == uneven_order[:11]
    shares = run_ranks(_ids_from, uneven, alone.state_dict(), 11, size=2)
    assert [a + b for a, b in zip(*shares, strict=True)] == uneven_order[11:]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_a_samples_noise_is_its_own_whatever_batch_holds_it(ids: list[int], random: Any) -> None:
    shape, device = torch.Size((2, 3, 1)), torch.device("cpu")
    whole = step_draws(7, 3, ids, shape, device)
    part = random.sample(range(len(ids)), random.randint(1, len(ids)))
    share = step_draws(7, 3, [ids[i] for i in part], shape, device)
    for name, value in vars(whole).items():
        assert torch.equal(getattr(share, name), value[part])


def test_an_attempts_noise_is_its_own_and_the_first_ones_is_the_seeds(reader_config: Config) -> None:
    (batch,) = next(iter(reader_of(reader_config)))
    shape, device = batch.latents.shape[1:], torch.device("cpu")
    draws = [step_draws(attempt_seed(reader_config.seed, n), 3, batch.ids, shape, device) for n in (0, 1, 2)]
    plain = step_draws(reader_config.seed, 3, batch.ids, shape, device)
    assert all(torch.equal(value, getattr(draws[0], name)) for name, value in vars(plain).items())
    noises = [noise for d in draws for noise in (d.student_noise, d.fake_noise, d.real_noise, d.student_time)]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(noises)


class Normals(TorchDispatchMode):
    """How many numbers each draw is of."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if str(func).startswith(("aten.normal_", "aten.randn")):
            self.counts.append(made.numel())
        return made


def test_noise_is_of_no_device_or_model() -> None:
    """In draws that every GPU deals to as many threads; a picture's is a CPU's."""
    with Normals() as normals:
        step_draws(7, 3, [5], torch.Size((16, 128, 128)), torch.device("cpu"))
    assert sum(normals.counts) == 2 + 3 * 16 * 128 * 128 and max(normals.counts) == 1 << 16
    assert image_noise([7], (4, 2, 2), 3, torch.device("meta")).device.type == "meta"


def test_noise_differs_between_samples_iterations_seeds_and_kinds() -> None:
    shape, device = torch.Size((1, 2, 2)), torch.device("cpu")
    draws = [step_draws(seed, it, [i], shape, device) for seed in (0, 1) for it in (0, 1) for i in (0, 1)]
    noises = [d.student_noise for d in draws] + [d.fake_noise for d in draws] + [d.real_noise for d in draws]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(noises)
    assert len({float(level) for d in draws for level in (d.fake_level, d.real_level)}) == 2 * len(draws)


# A dataset held against the run


def check(config: Config) -> Manifest:
    return check_dataset(config, LatentSpace.of(config.teacher.path), fingerprint(config.teacher.path), ALONE)


def test_a_good_dataset_passes(reader_config: Config) -> None:
    assert check(reader_config).counts == dict.fromkeys(BUCKETS, PER_BUCKET)


def test_a_missing_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LaddError, match=r"no dataset at data\.path=.*run launchers/synthesize\.py"):
        check(tiny_config(tmp_path, tmp_path / "none"))


def test_a_bucket_smaller_than_the_batch_is_an_error(dataset: Path, tmp_path: Path) -> None:
    check(tiny_config(tmp_path, dataset, "train.global_batch=24"))
    with pytest.raises(LaddError, match=r"bucket 32x32 of .* holds 24 samples, fewer than train\.global_batch=32"):
        check(tiny_config(tmp_path, dataset, "train.global_batch=32"))


def test_an_empty_bucket_is_an_error(dataset: Path, tmp_path: Path) -> None:
    data, config = copy_of(dataset, tmp_path)
    manifest = Manifest.read(data)
    replace(manifest, counts=manifest.counts | {"32x64": 0}).write(data)
    with pytest.raises(LaddError, match="bucket 32x64 of .* holds 0 samples"):
        check(config)


def test_latents_of_other_channels_are_an_error(dataset: Path, random_teacher: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, dataset, f"teacher.path={random_teacher}")
    with pytest.raises(LaddError, match=r"holds latents of 4 channels, but the teacher .* has 8.*teacher\.path"):
        check(config)


def test_latents_of_another_teacher_are_an_error(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher")
    weights = tmp_path / "teacher" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(LaddError, match=r"was made by teacher \w+, not by"):
        check(tiny_config(tmp_path, dataset, f"teacher.path={tmp_path / 'teacher'}"))
