"""How a GPU makes codes of 8-bit moments, for a dry run that compiles nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor


@contextmanager
def codes_at_once() -> Iterator[None]:
    """Within it torchao makes codes by one operator, as its update does where it is compiled.

    As it is written these are forty, whose indices take eight bytes a moment.
    """
    from torchao.optim import subclass_8bit

    with patch.object(subclass_8bit, "quantize_8bit_with_qmap", codes):
        yield


def codes(moments: Tensor, table: Tensor) -> Tensor:
    """Of moments in [-1, 1], one byte each; of no value."""
    return torch.empty_like(moments, dtype=torch.uint8)
