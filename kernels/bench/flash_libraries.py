"""The flash-attention packages as providers, each where it can be imported: generations 2, 3 (Hopper) and 4 (CuTe).

All have a ``flash_attn_func(q, k, v)`` on ``(B, T, H, D)`` that autograd goes back through
(github.com/Dao-AILab/flash-attention). Generation 4 is a part of generation 2's package that is also installed alone.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of packed ``(B, H, T, D)`` tensors."""
FLASH_LIBRARIES = {"FA2": "flash_attn", "FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""Provider -> module."""


def flash_libraries() -> tuple[dict[str, Attend], dict[str, str]]:
    """Attention by each package that is here, and why others are not."""
    found: dict[str, Attend] = {}
    absent: dict[str, str] = {}
    for name, module in FLASH_LIBRARIES.items():
        try:
            found[name] = partial(_attend, import_module(module).flash_attn_func)
        except (ImportError, AttributeError) as error:
            absent[name] = f"{module}.flash_attn_func cannot be imported: {error}"
    return found, absent


def _attend(flash_attn_func: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)))
    # Some generations, in some versions, also return the log-sum-exp.
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)
