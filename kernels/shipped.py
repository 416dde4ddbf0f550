"""How a kernel family describes each launch configuration that it ships, for the ahead-of-time gate to compile.

A family's list is its own ``shipped`` module. Neither these lists nor this file import torch, so that the gate can
run beside another version of triton.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shipped:
    """One kernel as it is launched: function, argument types, compile-time constants, launch options, requirements.

    Args:
        name: what the table calls it, such as ``forward bf16 d64``.
        arch: one of `ARCHITECTURES`.
        kernel: the ``@triton.jit`` function.
        signature: argument -> Triton type (``*bf16``, ``i32``, ``fp32``, ``tensordesc<bf16[1,64]>``), in order;
            constants are listed in ``constexprs`` alone. Pointers are compiled as aligned to 16 bytes.
        divisible: further arguments known to be divisible by 16.
        blocks: least thread blocks that have to fit on a multiprocessor.
        tensor_cores: whether its products have to run on tensor cores.
    """

    name: str
    arch: int
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    blocks: int = 1
    tensor_cores: bool = True
