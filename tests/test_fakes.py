"""Tensors without storage: what a remembered operator gives again is what it would give anew."""

import pytest
import torch
from conftest import TINY
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ladd_dist.config import load
from ladd_dist.data.buckets import Bucket
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.fakes import Fakes


@pytest.fixture
def fakes() -> Fakes:
    """A mode in which each answer from memory is compared with the operator's own, by PyTorch."""
    mode = Fakes()
    mode.cache_crosscheck_enabled = True
    FakeTensorMode.cache_clear()
    return mode


@pytest.mark.parametrize("checkpointing", [False, "selective"])
def test_every_operator_of_a_step_is_remembered_right(checkpointing: bool) -> None:
    config = load(TINY, ["method.r1_weight=0.1", "method.mismatched_weight=0.5"])
    costs = Costs(config, Bucket(32, 64), "cpu")
    costs._mode.cache_crosscheck_enabled = True
    FakeTensorMode.cache_clear()
    for passed in method_of(config).passes(config):
        costs.of(passed, checkpointing, 2)
    info = FakeTensorMode.cache_info()
    assert info.hits > 2 * info.misses > 1000, info


def given(mode: Fakes, *changes: str) -> Tensor:
    """A tensor that differs from the plain one in some respect."""
    with mode:
        x = torch.empty(4, 6, 4, 4, requires_grad="gradient" in changes)
        if "transposed" in changes:
            return x.mT
        if "channels_last" in changes:
            return x.contiguous(memory_format=torch.channels_last)
        if "offset" in changes:
            return torch.empty(5, 6, 4, 4)[1:]
        return x.int() if "whole" in changes else x


@pytest.mark.parametrize("change", ["gradient", "transposed", "channels_last", "offset", "whole"])
def test_what_a_tensor_is_like_is_told_apart(fakes: Fakes, change: str) -> None:
    plain, other = given(fakes), given(fakes, change)
    with fakes:
        for operator in (torch.relu, lambda x: x.view(-1) if x.is_contiguous() else x * 2, lambda x: x[1:] + x[:-1]):
            for x in (plain, other, plain, other):
                assert isinstance(operator(x), FakeTensor)


def test_a_whole_number_and_a_fraction_of_the_same_value_give_different_dtypes(fakes: Fakes) -> None:
    with fakes:
        x = torch.empty(3, dtype=torch.int64)
        assert [(x * by).dtype for by in (2, 2.0, 2, 2.0)] == [torch.int64, torch.float32] * 2
        assert [torch.stack(n * [x]).shape[0] for n in (1, 2, 1, 2)] == [1, 2, 1, 2]


def test_devices_are_told_apart(fakes: Fakes) -> None:
    with fakes:
        tensors = [torch.empty(2, device=device) for device in ("cpu", "meta", "cpu", "meta")]
        assert [(x + 1).device.type for x in tensors] == ["cpu", "meta"] * 2
