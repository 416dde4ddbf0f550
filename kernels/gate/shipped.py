"""What a kernel family tells the gate about each configuration that it ships."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

FAMILIES: dict[str, str] = {
    "joint_attention": "kernels.attention.configs",
    "heads": "kernels.heads.shipped",
    "modulation": "kernels.modulation.shipped",
}
"""Kernel family -> module whose ``shipped()`` yields its `Shipped` configurations. The module imports no torch."""

ARCHS = (80, 90, 100)
"""Compute capabilities compiled for: A100; H100 and H200; B200."""


@dataclass(frozen=True)
class Shipped:
    """One kernel as it is launched: source, argument types, compile-time constants, launch options, promises.

    Args:
        name: what the table calls it, such as ``forward bf16 d64``.
        kernel: returns the ``@triton.jit`` function.
        signature: argument -> Triton type (``*bf16``, ``i32``, ``fp32``, ``tensordesc<bf16[1,64]>``), in order;
            constants are listed in ``constexprs`` alone. Pointers are compiled as aligned to 16 bytes.
        divisible: further arguments known to be divisible by 16.
        blocks: least thread blocks that have to fit on a multiprocessor.
        tensor_cores: whether its products have to run on tensor cores.
    """

    name: str
    arch: int
    kernel: Callable[[], Any]
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    blocks: int = 1
    tensor_cores: bool = True


def shipped(families: list[str], archs: list[int]) -> Iterator[Shipped]:
    """Every configuration of the named families for the named architectures."""
    for family in families:
        for config in import_module(FAMILIES[family]).shipped():
            if config.arch in archs:
                yield config
