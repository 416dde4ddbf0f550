"""The functions of MosaicML Streaming that ours stand in for."""

import streaming
from streaming.base import dataset

from ladd_dist.data.order import deal
from ladd_dist.data.shared_memory import take_number
from ladd_dist.errors import LaddError

_REPLACED_IN = "0.13."


def patch_streaming() -> None:
    """Let Streaming's datasets take their names with `take_number`, and their order from `deal`.

    Raises:
        LaddError: if another version of Streaming is installed, whose functions these may not stand in for.
    """
    if not streaming.__version__.startswith(_REPLACED_IN):
        raise LaddError(
            f"mosaicml-streaming {streaming.__version__} is installed, but data/patches.py replaces functions "
            f"of {_REPLACED_IN}*: install that one"
        )
    dataset.get_shm_prefix = take_number
    dataset.generate_work = deal
