"""What a compiled block keeps for its backward pass, which torch's compiler decides."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch._dynamo

from ladd_dist.engines.compiled import compile_blocks
from ladd_dist.models.backbone import Backbone

_PARTITION = "aot_eager_decomp_partition"
"""Torch's backend that traces and cuts as inductor does, and runs the two halves operator by operator."""


@contextmanager
def partitioned(net: Backbone) -> Iterator[None]:
    """Within it blocks keep what they keep when compiled: least bytes, with what is cheap to compute again left out.

    What is alive while a block runs is more than in compiled code, where operators are fused.
    """
    blocks = net.wrap_points()
    before = [vars(block).get("forward") for block in blocks]
    compile_blocks(blocks, backend=_PARTITION, dynamic=False)  # of one size alone, which takes half as long to trace
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
        torch._dynamo.reset_code_caches()  # a whole reset would also forget what fake tensors know of operators
