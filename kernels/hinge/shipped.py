"""What the ahead-of-time gate compiles: every hinge kernel for every role of its logits, as `launch` launches it."""

from collections.abc import Iterator
from typing import Any

from kernels.architectures import ARCHITECTURES
from kernels.hinge.kernel import ADDED, TILE, hinge_finish, hinge_gradient, hinge_tile
from kernels.shipped import Shipped

_ROLES = ("real", "fake", "generator")


def shipped() -> Iterator[Shipped]:
    """Logits and losses are fp32 always."""
    for arch in ARCHITECTURES:
        for role in _ROLES:
            for kernel in (hinge_tile, hinge_gradient):
                yield _config(arch, f"{kernel.__name__} {role}", kernel, ("size",), {"ROLE": role, "BLOCK": TILE})
        yield _config(arch, "hinge_finish", hinge_finish, ("size", "tiles"), {"BLOCK": ADDED})


def _config(arch: int, name: str, kernel: Any, integers: tuple[str, ...], constants: dict[str, str | int]) -> Shipped:
    signature = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")} | dict.fromkeys(integers, "i32")
    return Shipped(name, arch, kernel, signature, constants, num_warps=4, num_stages=3, blocks=2, tensor_cores=False)
