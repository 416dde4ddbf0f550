"""Another engine and another number of ranks go on from the same files, in the middle of an epoch."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import BUCKETS, PER_BUCKET, tiny_config
from launch import run_ranks
from recorded import ends_of, newest, order_of, rows_of, tensors_of, train, train_until_asked

from ladd_dist.config import Config
from ladd_dist.data.mds import Manifest
from ladd_dist.data.reader import LatentReader
from ladd_dist.distributed.world import World

Leg = tuple[str, int, int]
"""Engine, ranks, and the iterations after which it is asked to stop."""
_ITERATIONS = 12
_BATCH = 8
_EPOCH = len(BUCKETS) * PER_BUCKET // _BATCH
# As in tests/test_launch.py: parameters are comparable to rounding where AdamW's epsilon is above it.
_EXACT = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]
_ROUTES: dict[str, tuple[list[Leg], list[str]]] = {
    "2 to 4 to 1": ([("fsdp2", 2, 4), ("fsdp2", 4, 7), ("local", 1, _ITERATIONS)], ["data.workers=2"]),
    "both ways": ([("zero3", 2, 2), ("fsdp2", 4, 5), ("zero3", 2, 8), ("local", 1, _ITERATIONS)], []),
}


Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def config_of(random_teacher: Path, random_dataset: Path) -> Configure:
    """The configuration of an engine's part of the run."""
    settings = [f"teacher.path={random_teacher}", f"train.iterations={_ITERATIONS}", "train.checkpoint_every=100"]
    settings += [f"train.global_batch={_BATCH}", "train.micro_batch=null", *_EXACT]
    return lambda engine, run_dir, *more: tiny_config(run_dir, random_dataset, f"engine={engine}", *settings, *more)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, config_of: Configure) -> Path:
    """The local engine's run in one go."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    run_ranks(train, config_of("local", run_dir))
    return run_dir


def drive(leg: Leg, config: Config) -> None:
    """Run a leg; a stop that one rank is asked for comes one iteration later where several must agree."""
    _, size, until = leg
    if until == _ITERATIONS:
        run_ranks(train, config, size=size)
    else:
        run_ranks(train_until_asked, config, until - min(size, 2), size - 1, size=size)


@pytest.mark.slow
@pytest.mark.parametrize("route", list(_ROUTES))
def test_other_ranks_and_engines_go_on_with_the_same_run(
    tmp_path: Path, config_of: Configure, uninterrupted: Path, route: str
) -> None:
    legs, overrides = _ROUTES[route]
    for leg in legs:
        drive(leg, config_of(leg[0], tmp_path, *overrides))
        state = newest(tmp_path).state
        assert (state.engine, state.world_size, state.iteration) == leg
    assert ends_of(tmp_path) == [(until, until < _ITERATIONS) for _, size, until in legs for _ in range(size)]

    order, expected = order_of(tmp_path), order_of(uninterrupted)
    assert {i: sorted(ids) for i, ids in order.items()} == {i: sorted(ids) for i, ids in expected.items()}
    assert sorted(i for batch in range(_EPOCH) for i in order[batch]) == list(range(len(BUCKETS) * PER_BUCKET))

    losses = [
        [(row["iteration"], row["d_loss"], row["g_loss"]) for row in rows_of(d)] for d in (tmp_path, uninterrupted)
    ]
    # Losses are means of logits, which nearly cancel in the student's: rounding is relative to the logits.
    logits = max(abs(value) for row in rows_of(uninterrupted) for value in row["real_logit"])
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4 * logits)
    assert distance(tmp_path, uninterrupted) < 1e-5


def distance(run_dir: Path, reference: Path) -> float:
    """Greatest relative difference of student, average or heads."""
    ours, theirs = tensors_of(run_dir), tensors_of(reference)
    kinds = {key.rsplit("/", 1)[0] for key in theirs if "/param/" in key}
    vectors = [
        [torch.cat([run[key] for key in sorted(theirs) if key.startswith(f"{kind}/")]) for run in (ours, theirs)]
        for kind in kinds
    ]
    return max(float((a - b).norm() / b.norm()) for a, b in vectors)


# The order of the samples alone


def _batches(world: World, config: Config, state: dict[str, int] | None, count: int) -> tuple[list, dict[str, int]]:
    reader = LatentReader(config, Manifest.read(config.data.path), world)
    if state is not None:
        reader.load_state_dict(state)
    ids = [[i for batch in micro for i in batch.ids] for micro in islice(reader, count)]
    return ids, reader.state_dict()


def order_over(dataset: Path, legs: Sequence[tuple[int, int]], *overrides: str) -> list[list[int]]:
    """Global batches, as sets in order, of legs of ``(ranks, batches)``."""
    order, state = [], None
    for size, count in legs:
        config = tiny_config(dataset, dataset, "train.micro_batch=null", *overrides)
        shares = run_ranks(_batches, config, state, count, size=size)
        (state,) = {tuple(sorted(s.items())): s for _, s in shares}.values()
        order += [sorted(sum(together, [])) for together in zip(*(ids for ids, _ in shares), strict=True)]
    return order


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch", "left_out"), [(8, 0), (20, 4)])
def test_no_sample_is_lost_or_repeated_whatever_ranks_read_on(
    dataset: Path, workers: int, batch: int, left_out: int
) -> None:
    epoch = len(BUCKETS) * (PER_BUCKET // batch)
    settings = [f"train.global_batch={batch}", f"data.workers={workers}"]
    legs = [(2, epoch // 3), (4, epoch // 3 + 1), (1, epoch)]
    order = order_over(dataset, legs, *settings)
    assert order == order_over(dataset, [(1, len(order))], *settings)
    first = sum(order[:epoch], [])
    assert len(first) == len(set(first)) == len(BUCKETS) * (PER_BUCKET - left_out)
