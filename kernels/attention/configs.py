"""Launch configurations, by architecture, dtype and head_dim, and what each promises to the ahead-of-time gate.

No torch here: the gate also runs beside another version of triton. The tiles of sm_90 at head_dim 64 in 16 bits are
the fastest of those tried on an H200 (docs/log.md) that keep their promises on registers and shared memory under both
versions of triton; the others were never timed, and are the largest that keep them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kernels.gate.shipped import ARCHS, Shipped

HEAD_DIMS = (32, 64, 128)
DTYPES = ("bf16", "fp16", "fp32")
PREPARE_WARPS = 4
"""The kernel that prepares rows takes the block of the kernel that reads them."""
PACK_ROWS = 64
"""Rows per tile of the kernels around a library's backward pass."""


@dataclass(frozen=True)
class Launch:
    """Tile sizes and launch options of one kernel; ``blocks`` must fit on a multiprocessor."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    blocks: int = 1


def launch(kernel: str, arch: int, dtype: str, head_dim: int) -> Launch:
    """The configuration of ``forward`` (its bounded twin included), ``backward_q`` or ``backward_kv``."""
    table = _FP32 if dtype == "fp32" else {80: _SM80, 90: _SM90, 100: _SM100}[arch]
    return table[kernel][head_dim]


def precision(dtype: str) -> str:
    """fp32 products are exact (no tensor cores); for the other dtypes the value has no effect."""
    return "ieee" if dtype == "fp32" else "tf32"


_SM80 = {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(64, 64, 4, 3, 3), 128: Launch(128, 32, 8, 2)},
    "backward_q": {32: Launch(64, 64, 4, 2, 3), 64: Launch(64, 64, 4, 2, 2), 128: Launch(64, 64, 8, 2)},
    "backward_kv": {32: Launch(64, 64, 4, 2, 2), 64: Launch(32, 64, 4, 2, 2), 128: Launch(32, 64, 8, 2)},
}
_SM90 = {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(128, 64, 4, 3, 2), 128: Launch(128, 64, 8, 2)},
    "backward_q": {32: Launch(64, 64, 4, 3, 3), 64: Launch(64, 64, 4, 3, 3), 128: Launch(64, 64, 4, 2, 2)},
    "backward_kv": {32: Launch(64, 64, 4, 2, 2), 64: Launch(32, 64, 4, 3, 3), 128: Launch(64, 64, 8, 2)},
}
_SM100 = _SM90 | {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(128, 64, 8, 3), 128: Launch(128, 32, 8, 2)},
}
_FP32 = {
    "forward": {32: Launch(32, 32, 4, 1), 64: Launch(32, 32, 8, 1), 128: Launch(32, 32, 8, 1)},
    "backward_q": {32: Launch(32, 32, 8, 1), 64: Launch(32, 32, 8, 1), 128: Launch(16, 16, 8, 1)},
    "backward_kv": {32: Launch(32, 32, 8, 1), 64: Launch(16, 64, 8, 1), 128: Launch(16, 32, 8, 1)},
}


def shipped() -> Iterator[Shipped]:
    """Every configuration of every kernel, with both norms and all gradients: the most that a launch can ask for."""
    for arch in ARCHS:
        for dtype in DTYPES:
            for head_dim in HEAD_DIMS:
                for block in sorted(_prepared_blocks(arch, dtype, head_dim)):
                    rows = Launch(block, block, PREPARE_WARPS, 1)
                    yield _shipped("prepare", rows, {"PADDED": True}, arch, dtype, head_dim)
                rows = Launch(PACK_ROWS, PACK_ROWS, PREPARE_WARPS, 1)
                yield _shipped("pack", rows, {"PADDED": False}, arch, dtype, head_dim)
                yield _shipped("unprepare", rows, {"WEIGHT_GRADIENT": True}, arch, dtype, head_dim)
                for kernel, constants in _CONSTANTS.items():
                    if (kernel, dtype) != ("bounded", "fp16"):
                        chosen = launch("forward" if kernel == "bounded" else kernel, arch, dtype, head_dim)
                        yield _shipped(kernel, chosen, constants, arch, dtype, head_dim)


def _prepared_blocks(arch: int, dtype: str, head_dim: int) -> set[int]:
    forward, on_q, on_kv = (launch(k, arch, dtype, head_dim) for k in ("forward", "backward_q", "backward_kv"))
    return {forward.block_k, on_q.block_k, on_kv.block_q}


_CONSTANTS: dict[str, dict[str, Any]] = {
    "forward": {"BOUNDED": False, "GUARDED": True},
    "bounded": {"BOUNDED": True, "GUARDED": True},
    "backward_q": {"WEIGHT_GRADIENT": True},
    "backward_kv": {"WEIGHT_GRADIENT": True},
}
_FUNCTIONS = {
    "prepare": ("tiles", "prepare"),
    "pack": ("tiles", "prepare"),
    "unprepare": ("tiles", "unprepare"),
    "forward": ("forward", "attention_forward"),
    "bounded": ("forward", "attention_forward"),
    "backward_q": ("backward", "attention_backward_q"),
    "backward_kv": ("backward", "attention_backward_kv"),
}


def _function(kernel: str) -> Any:
    module, name = _FUNCTIONS[kernel]
    return getattr(import_module(f"kernels.attention.{module}"), name)


def _shipped(kernel: str, chosen: Launch, constants: dict[str, Any], arch: int, dtype: str, head_dim: int) -> Shipped:
    known = constants | {
        "HEAD_DIM": head_dim, "BLOCK": chosen.block_k, "BLOCK_Q": chosen.block_q, "BLOCK_K": chosen.block_k,
        "PAD_Q": launch("backward_kv", arch, dtype, head_dim).block_q,
        "PAD_K": launch("backward_q", arch, dtype, head_dim).block_k,
        "IMAGE_NORM": True, "TEXT_NORM": True, "PRECISION": precision(dtype),
    }  # fmt: skip
    names = _function(kernel).arg_names
    return Shipped(
        name=f"{kernel} {dtype} d{head_dim} {chosen.block_q}x{chosen.block_k}",
        arch=arch,
        kernel=lambda: _function(kernel),
        signature={name: _type(name, dtype) for name in names if name not in known},
        constexprs={name: known[name] for name in names if name in known},
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        blocks=chosen.blocks,
        tensor_cores=dtype != "fp32" and kernel in _CONSTANTS,
    )


def _type(name: str, dtype: str) -> str:
    """Triton's type of an argument."""
    if name in ("heads", "image_length", "text_length"):
        return "i32"
    if name in ("scale", "eps"):
        return "fp32"
    return "*fp32" if name in ("lse", "delta", "d_weight") else f"*{dtype}"
