"""GPU architectures that the kernels are compiled and checked for, and what a multiprocessor of each has.

Limits are those of the CUDA programming guide's table of technical specifications per compute capability, which has
no column for 10.3 and 12.1: NVIDIA's CCCL (`cuda::arch_traits`) gives them those of 10.0 and 12.0. No torch here: the
ahead-of-time gate also runs beside another version of triton.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor.

    Args:
        table: the architecture whose launch configurations it uses: its own, or one with the same limits.
        shared: bytes of shared memory; a block uses 1 KiB of it for the system.
        warps: that can be resident.
        blocks: that can be resident.
        mma: tensor-core instruction that its code has to use; older ones run at a fraction of the speed.
    """

    table: int
    shared: int
    warps: int
    blocks: int
    mma: str


_KIB = 1024
ARCHITECTURES = {
    80: Architecture(80, 164 * _KIB, 64, 32, "HMMA"),  # A100
    86: Architecture(86, 100 * _KIB, 48, 16, "HMMA"),  # A10, A40, RTX 30
    89: Architecture(86, 100 * _KIB, 48, 24, "HMMA"),  # L4, L40S, RTX 40
    90: Architecture(90, 228 * _KIB, 64, 32, "HGMMA"),  # H100, H200
    100: Architecture(100, 228 * _KIB, 64, 32, "UTC[A-Z]*MMA"),  # B200
    103: Architecture(100, 228 * _KIB, 64, 32, "UTC[A-Z]*MMA"),  # B300
    120: Architecture(86, 100 * _KIB, 48, 24, "HMMA"),  # RTX 50, RTX PRO Blackwell
    121: Architecture(86, 100 * _KIB, 48, 24, "HMMA"),  # GB10
}
"""Ten times the compute capability -> the architecture. 12.x has Ampere's instructions, not the B200's."""


def named(arch: int) -> str:
    """``90`` as the capability ``9.0``."""
    return f"{arch // 10}.{arch % 10}"
