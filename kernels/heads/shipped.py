"""What the ahead-of-time gate compiles: every kernel at the widths of the 8B run's heads, as `launch` launches it."""

from collections.abc import Iterator
from typing import Any

from kernels.architectures import ARCHITECTURES
from kernels.heads import convolution, pointwise
from kernels.heads.tiles import POINTWISE_C, POINTWISE_M, Tiles, conv_tiles, weight_tiles
from kernels.shipped import Shipped

_POSITIONS, _WIDE, _NARROW, _GROUPS = 4096, 256, 128, 32
_SIZES = {"bf16": 2, "fp16": 2}
_INTEGERS = ("images", "batch", "height", "width", "positions", "tiles")


def shipped() -> Iterator[Shipped]:
    """Of the two 16-bit dtypes; fp32 has no tensor-core path and is for checking."""
    for arch in ARCHITECTURES:
        for dtype, size in _SIZES.items():
            yield from _convolutions(arch, dtype, size)
            yield from _weight_gradients(arch, dtype, size)
            yield from _pointwise(arch, dtype)


def _convolutions(arch: int, dtype: str, size: int) -> Iterator[Shipped]:
    # Two blocks of a Hopper GPU take turns at the tensor cores.
    uses = {
        "conv1": (_WIDE, _WIDE, True),
        "conv2": (_WIDE, _NARROW, True),
        "conv2 input gradient": (_NARROW, _WIDE, False),
        "conv1 input gradient": (_WIDE, _WIDE, False),
    }
    for name, (k, n, forward) in uses.items():
        unit, wide = ("stride_k", "stride_n") if forward else ("stride_n", "stride_k")
        signature = _pointers("convolve", dtype) | dict.fromkeys((*_INTEGERS[:4], wide), "i32")
        yield _config(
            "convolve",
            f"{name} {dtype}",
            arch,
            signature,
            {"K": k, "N": n, "FORWARD": forward, unit: 1},
            conv_tiles(_POSITIONS, k, n, size, forward, arch),
            (wide,),
            blocks=2 if arch == 90 else 1,
        )


def _weight_gradients(arch: int, dtype: str, size: int) -> Iterator[Shipped]:
    for name, k, n in (("conv1", _WIDE, _WIDE), ("conv2", _WIDE, _NARROW)):
        tiles = weight_tiles(_POSITIONS, k, n, size)
        signature = _pointers("weight_gradient", dtype) | dict.fromkeys(_INTEGERS[1:4], "i32")
        constants = {"K": k, "N": n}
        yield _config(
            "weight_gradient", f"{name} weight gradient {dtype}", arch, signature, constants, tiles, blocks=1
        )


def _pointwise(arch: int, dtype: str) -> Iterator[Shipped]:
    group = {"C": _NARROW, "GROUP": _NARROW // _GROUPS, "BLOCK_C": _NARROW // _GROUPS}
    tile = {"C": _NARROW, "BLOCK_M": POINTWISE_M, "BLOCK_C": POINTWISE_C}
    kernels: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
        "finish_statistics": (("images", "batch", "positions", "tiles"), group | {"TILE": 128}),
        "finish_gradients": (("images", "batch", "positions", "tiles"), group),
        "activate": (("images", "positions"), tile),
        "activation_sums": (("images", "positions"), tile),
        "normalise_gradient": (("images", "positions"), tile),
        "logits": (("images", "batch", "positions"), tile),
        "logits_gradient": (("images", "positions"), tile),
    }
    for name, (integers, constants) in kernels.items():
        signature = _pointers(name, dtype) | dict.fromkeys(integers, "i32")
        if name == "finish_statistics":
            signature["eps"] = "fp32"
        yield _config(name, f"{name} {dtype}", arch, signature, constants)
    constants = {"K": _WIDE, "N": _WIDE, "BLOCK_K": 128}
    for name in ("pack_filters", "unpack_filters"):
        yield _config(name, f"{name} {dtype}", arch, _pointers(name, dtype), constants)


def _pointers(kernel: str, dtype: str) -> dict[str, str]:
    """Types of a kernel's pointers: activations and packed filters in the compute dtype, all else in fp32."""
    images = {"x_ptr", "y_ptr", "dy_ptr", "gradient_ptr", "packed_ptr", "h_ptr", "dh_ptr"}
    if kernel == "convolve":
        images.add("weight_ptr")
    names = [name for name in _function(kernel).arg_names if name.endswith("_ptr")]
    return {name: f"*{dtype}" if name in images else "*fp32" for name in names}


def _function(name: str) -> Any:
    return getattr(convolution, name, None) or getattr(pointwise, name)


def _config(
    kernel: str,
    name: str,
    arch: int,
    signature: dict[str, str],
    constants: dict[str, Any],
    tiles: Tiles | None = None,
    divisible: tuple[str, ...] = (),
    blocks: int = 2,
) -> Shipped:
    warps, stages = (tiles.num_warps, tiles.num_stages) if tiles else (4, 3)
    if tiles:
        constants = constants | {"BLOCK_M": tiles.BLOCK_M, "BLOCK_N": tiles.BLOCK_N, "BLOCK_K": tiles.BLOCK_K}
    return Shipped(
        name=name,
        arch=arch,
        kernel=_function(kernel),
        signature=signature,
        constexprs=constants,
        num_warps=warps,
        num_stages=stages,
        divisible=divisible,
        blocks=blocks,
        tensor_cores=tiles is not None,
    )
