"""The kernel families that the gate compiles."""

from collections.abc import Callable, Iterator

from kernels.attention.shipped import shipped as joint_attention
from kernels.heads.shipped import shipped as heads
from kernels.hinge.shipped import shipped as hinge
from kernels.shipped import Shipped

FAMILIES: dict[str, Callable[[], Iterator[Shipped]]] = {
    "joint_attention": joint_attention,
    "heads": heads,
    "hinge": hinge,
}
"""Kernel family -> its list of configurations."""


def shipped(families: list[str], archs: list[int]) -> Iterator[Shipped]:
    """Every configuration of the named families for the named architectures."""
    for family in families:
        yield from (config for config in FAMILIES[family]() if config.arch in archs)
