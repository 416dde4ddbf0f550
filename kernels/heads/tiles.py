"""Tile sizes and launch options, chosen from shapes alone; the ahead-of-time gate compiles the same ones."""

from dataclasses import dataclass

from kernels.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Tiles:
    """A kernel's tile and its launch options, under the kernel's own argument names."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


def power(n: int, least: int, most: int) -> int:
    """The smallest power of two that covers ``n``, within bounds."""
    return min(most, max(least, 1 << (n - 1).bit_length()))


def conv_tiles(positions: int, k: int, n: int, itemsize: int, forward: bool, arch: int) -> Tiles:
    """Of `convolve` from ``k`` to ``n`` channels. ``BLOCK_K`` divides ``k``, a multiple of 16; the rest is masked.

    Four warps are faster on an H200; forward, the statistics would then not fit into a B200's registers, and nowhere
    does the rest into those of the multiprocessors with 100 KiB of shared memory.
    """
    wide = itemsize == 2  # fp32 runs without tensor cores: smaller tiles keep its accumulators in registers
    deep = next(block for block in (64, 32, 16) if k % block == 0 and (wide or block <= 32))
    m, n = power(positions, 16, 128 if wide else 64), power(n, 16, 128 if wide else 64)
    tight = forward or ARCHITECTURES[arch].table == 86
    return Tiles(m, n, deep, num_warps=8 if tight and m * n >= 128 * 64 else 4, num_stages=3 if wide else 2)


def weight_tiles(positions: int, k: int, n: int, itemsize: int) -> Tiles:
    """Of `weight_gradient` for a convolution from ``k`` to ``n`` channels; everything is masked."""
    wide = itemsize == 2
    k = power(k, 16, 256 if wide else 64)
    n = power(n, 16, 256 * 128 // k if wide else 64)
    m = power(positions, 16, 64 if wide else 32)
    return Tiles(m, n, k, num_warps=8 if k * n > 128 * 128 else 4, num_stages=3 if wide else 2)


POINTWISE_M, POINTWISE_C = 64, 64
"""Positions and channels in a tile of the kernels between the convolutions."""
