"""Launch configurations of attention, by architecture, dtype and head_dim.

No torch here: the ahead-of-time gate also runs beside another version of triton. The tiles of sm_90 at head_dim 64 in
16 bits are the fastest of those tried on an H200 (docs/log.md) that fit into registers and shared memory under both
versions of triton; the others were never timed, and are the largest that fit.
"""

from dataclasses import dataclass

from kernels.architectures import ARCHITECTURES

ATTENTION_HEAD_DIMS = (32, 64, 128)
"""Channels per head that the kernels are built for."""
PREPARE_WARPS = 4
"""Warps of the kernel that normalises rows; its tiles are those of the kernel that reads them."""
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
    """The configuration of ``forward`` (with or without running maximum), ``backward_q`` or ``backward_kv``."""
    table = _FP32 if dtype == "fp32" else _TABLES[ARCHITECTURES[arch].table]
    return table[kernel][head_dim]


def precision(dtype: str) -> str:
    """fp32 products are exact (no tensor cores); for the other dtypes the value has no effect."""
    return "ieee" if dtype == "fp32" else "tf32"


_SM80 = {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(64, 64, 4, 3, 3), 128: Launch(128, 32, 8, 2)},
    "backward_q": {32: Launch(64, 64, 4, 2, 3), 64: Launch(64, 64, 4, 2, 2), 128: Launch(64, 64, 8, 2)},
    "backward_kv": {32: Launch(64, 64, 4, 2, 2), 64: Launch(32, 64, 4, 2, 2), 128: Launch(32, 64, 8, 2)},
}
_SM86 = _SM80 | {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(64, 64, 4, 3, 2), 128: Launch(64, 32, 8, 2)},
    "backward_q": {32: Launch(64, 64, 4, 2, 3), 64: Launch(64, 64, 8, 2), 128: Launch(64, 64, 8, 2)},
}
_SM90 = {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(128, 64, 4, 3, 2), 128: Launch(128, 64, 8, 2)},
    "backward_q": {32: Launch(64, 64, 4, 3, 3), 64: Launch(64, 64, 4, 3, 3), 128: Launch(64, 64, 4, 2, 2)},
    "backward_kv": {32: Launch(64, 64, 4, 2, 2), 64: Launch(32, 64, 4, 3, 3), 128: Launch(64, 64, 8, 2)},
}
_SM100 = _SM90 | {
    "forward": {32: Launch(128, 64, 4, 3, 2), 64: Launch(128, 64, 8, 3), 128: Launch(128, 32, 8, 2)},
}
_TABLES = {80: _SM80, 86: _SM86, 90: _SM90, 100: _SM100}
_FP32 = {
    "forward": {32: Launch(32, 32, 4, 1), 64: Launch(32, 32, 8, 1), 128: Launch(32, 32, 8, 1)},
    "backward_q": {32: Launch(32, 32, 16, 1), 64: Launch(32, 32, 8, 1), 128: Launch(16, 16, 8, 1)},
    "backward_kv": {32: Launch(32, 32, 16, 1), 64: Launch(16, 64, 8, 1), 128: Launch(16, 32, 8, 1)},
}
