"""What DeepSpeed asks of the ranks beside it, answered for a dry run, in which there are none."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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

    with ExitStack() as stack:
        for module in _CHECKERS:
            stack.enter_context(patch(f"deepspeed.runtime.zero.{module}.assert_ints_same_as_other_ranks", agree))
        stack.enter_context(patch.dict(os.environ, {"LOCAL_RANK": "0"}))  # what its launcher would set
        yield
