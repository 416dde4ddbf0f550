"""What DeepSpeed asks of the ranks beside it, answered for a dry run, in which there are none."""

import os
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

_CHECKERS = ("partition_parameters", "partitioned_param_coordinator", "stage3")
"""Its modules that hold a list of numbers against the other ranks'."""


@contextmanager
def agreeing_ranks() -> Iterator[None]:
    """Within it all ranks hold the same parameters in the same order, as they do when all of them run this code."""
    import deepspeed.runtime.zero.utils as utils  # late: it probes for compilers and devices

    compare = utils.assert_ints_same_as_other_ranks

    def agree(numbers: list[int]) -> None:
        try:
            compare(numbers)
        except RuntimeError as error:
            # A number without data came back. That the host waited for it has been counted by then.
            if "disagreement" not in str(error):
                raise

    stage3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
    overflows = pkgutil.resolve_name(stage3).has_overflow

    def finite(optimizer: Any, *args: Any) -> bool:
        overflows(optimizer, *args)
        return False

    with ExitStack() as stack:
        stack.enter_context(patch(f"{stage3}.has_overflow", finite))  # or no update would run
        for kept in ("comm.comm.cdb", "utils.groups._WORLD_GROUP"):  # another dry run's
            stack.enter_context(patch(f"deepspeed.{kept}", None))
        for module in _CHECKERS:
            stack.enter_context(patch(f"deepspeed.runtime.zero.{module}.assert_ints_same_as_other_ranks", agree))
        stack.enter_context(patch.dict(os.environ, {"LOCAL_RANK": "0"}))  # what its launcher would set
        yield
