"""What DeepSpeed asks of the ranks beside it and of its gradients, answered for a dry run, which has neither."""

import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_STAGE3 = "deepspeed.runtime.zero.stage3"
_COMPARES = [
    f"deepspeed.runtime.zero.{module}.assert_ints_same_as_other_ranks"
    for module in ("partition_parameters", "partitioned_param_coordinator", "stage3")
]
"""Hold a list of numbers against the other ranks'."""
_OVERFLOWS = [f"{_STAGE3}.DeepSpeedZeroOptimizer_Stage3.has_overflow", f"{_STAGE3}.is_invalid_grad_norm"]
"""Whether gradients are not finite; then there would be no update."""
_KEPT = ["deepspeed.comm.comm.cdb", "deepspeed.utils.groups._WORLD_GROUP"]
"""What it keeps of a process group."""
_SWAPS = "torch.utils.swap_tensors"
"""Puts what `nn.Module.to` has made of a fake parameter in its place."""


@contextmanager
def agreeing_ranks() -> Iterator[None]:
    """Within it all ranks hold the same parameters, as they do when all of them run this code, and finite gradients.

    What asks is run all the same, so that the host's waits for the device are counted.
    """
    with ExitStack() as stack:
        for name in _COMPARES:
            stack.enter_context(patch(name, _agrees(pkgutil.resolve_name(name))))
        for name in _OVERFLOWS:
            stack.enter_context(patch(name, _never(pkgutil.resolve_name(name))))
        for name in _KEPT:
            stack.enter_context(patch(name, None))
        stack.enter_context(patch(_SWAPS, _swap_what_differs(torch.utils.swap_tensors)))
        stack.enter_context(patch.dict(os.environ, {"LOCAL_RANK": "0"}))  # what its launcher would set
        yield


def _agrees(compare: Callable[[list[int]], None]) -> Callable[[list[int]], None]:
    def agree(numbers: list[int]) -> None:
        try:
            compare(numbers)
        except RuntimeError as error:  # numbers without data came back
            if "disagreement" not in str(error):
                raise

    return agree


def _never(asks: Callable[..., Any]) -> Callable[..., bool]:
    def never(*args: Any) -> bool:
        asks(*args)
        return False

    return never


def _swap_what_differs(swap: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    """Leave a parameter that `nn.Module.to` does not move, as a real one is left: peft has it move every adapter.

    Torch would put another fake tensor in its place, without what DeepSpeed has noted on it; and it refuses to, where
    its mode for fake tensors keeps a weak reference to that other one.
    """

    def swap_what_differs(parameter: Tensor, moved: Tensor) -> None:
        if (parameter.device, parameter.dtype) != (moved.device, moved.dtype):
            swap(parameter, moved)

    return swap_what_differs
