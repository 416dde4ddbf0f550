"""The ranges of all ranks tile a tensor as PyTorch and DeepSpeed cut it."""

import pytest
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.config import load
from ladd_dist.engines.ranges import Range, elements, gathered_limit, rows, whole
from ladd_dist.engines.registry import engine_entry

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(torch.Size)


@given(SHAPES, st.integers(1, 9))
def test_ranges_tile_the_tensor_in_rank_order(shape: torch.Size, size: int) -> None:
    tensor = torch.arange(shape.numel()).view(shape)
    for cut, seen in ((rows, tensor), (elements, tensor.view(-1))):
        parts = [cut(shape, size, rank) for rank in range(size)]
        assert torch.cat([tensor.view(-1)[p.offset : p.offset + p.held] for p in parts]).equal(tensor.view(-1))
        chunks = [chunk.numel() for chunk in seen.chunk(size)]
        assert [part.held for part in parts] == chunks + [0] * (size - len(chunks))
        assert {(part.stored, part.gathered) for part in parts} == {(chunks[0], size * chunks[0])}


def test_a_whole_tensor_is_one_range() -> None:
    assert whole(torch.Size([3, 4])) == Range(0, 12, 12, 12)


def test_copies_of_a_shard_hold_the_same_range() -> None:
    config = load(TINY, ["engine=fsdp2", "fsdp2.replicas=2"])
    held = [engine_entry("fsdp2").layout(config, 4, rank)(torch.Size([5, 2])) for rank in range(4)]
    assert held[:2] == held[2:] == [Range(0, 6, 6, 12), Range(6, 4, 6, 12)]


@pytest.mark.parametrize(("shapes", "limit"), [([[7], [3], [9, 9]], 8), ([[2, 2]], 1)])
def test_biases_and_norm_weights_stay_gathered(shapes: list[list[int]], limit: int) -> None:
    assert gathered_limit(map(torch.Size, shapes)) == limit
