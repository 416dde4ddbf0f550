"""Launch options of the modulation kernels, and what the ahead-of-time gate compiles: the 8B network's width."""

from collections.abc import Iterator
from typing import Any

from kernels.gate.shipped import ARCHS, Shipped

ROWS = 8
"""Tokens of a program: enough to share scale and shift, few enough that one sample of 4,096 fills a GPU."""
WIDEST = 8192
"""Channels that one program can hold in registers."""
NUM_WARPS = 8
_WIDTH = 2432


def block_of(width: int) -> int:
    """The power of two that covers a row."""
    return 1 << (width - 1).bit_length()


def shipped() -> Iterator[Shipped]:
    """Every kernel in both 16-bit dtypes."""
    for arch in ARCHS:
        for dtype in ("bf16", "fp16"):
            for name in ("norm_forward", "norm_backward", "residual_forward", "residual_backward"):
                yield _config(name, arch, dtype)


def _function(name: str) -> Any:
    from kernels.modulation import kernel  # late: configurations are listed without triton

    return getattr(kernel, name)


def _config(name: str, arch: int, dtype: str) -> Shipped:
    pointers = [a for a in _function(name).arg_names if a.endswith("_ptr")]
    signature = {a: "*fp32" if a == "partial_ptr" else f"*{dtype}" for a in pointers} | {
        "tokens": "i32",
        "width": "i32",
    }
    if name.startswith("norm"):
        signature["eps"] = "fp32"
    return Shipped(
        name=f"{name} {dtype}",
        arch=arch,
        kernel=lambda: _function(name),
        signature=signature,
        constexprs={"ROWS": ROWS, "BLOCK_D": block_of(_WIDTH)},
        num_warps=NUM_WARPS,
        num_stages=3,
        divisible=("tokens", "width"),
        blocks=2,
        tensor_cores=False,
    )
