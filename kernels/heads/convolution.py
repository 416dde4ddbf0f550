"""3x3 convolutions as implicit GEMM over shifted loads, for all heads at once; see the package for names.

One kernel serves both convolutions and both of their input gradients: a gradient by the input is the convolution
of the output's gradient with turned filters. GroupNorm and LeakyReLU are not done on load: each of nine taps would do
them again, in registers, and tiles that go to shared memory as they are feed the tensor cores at twice the rate.
"""

import triton
import triton.language as tl

from kernels.heads.pointwise import IMAGES


@triton.jit
def shifted_tile(x_ptr, m_M, height, width, tap, k_K, K: tl.constexpr):
    """Positions ``m_M`` of an image as tap 0..8 sees them: ``(M, K)``, zeros outside."""
    down, right = tap // 3 - 1, tap % 3 - 1
    row_M, column_M = m_M // width + down, m_M % width + right
    inside_M = (row_M >= 0) & (row_M < height) & (column_M >= 0) & (column_M < width) & (m_M < height * width)
    source_M = m_M + down * width + right
    return tl.load(x_ptr + source_M[:, None] * K + k_K[None, :], mask=inside_M[:, None], other=0.0)


@triton.jit(do_not_specialize=IMAGES)
def convolve(
    x_ptr,  # (I, H*W, K)
    weight_ptr,  # (heads, 9, ...) as the strides say
    bias_ptr,  # (heads, N) fp32; read where FORWARD
    y_ptr,  # (I, H*W, N) out
    partial_ptr,  # (2, I, T, N) fp32 out where FORWARD
    images,
    batch,
    height,
    width,
    stride_k,
    stride_n,
    K: tl.constexpr,
    N: tl.constexpr,
    FORWARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one image's convolution.

    FORWARD adds the bias and leaves the tile's sum and its squared spread around the tile's own mean per channel.
    Otherwise ``x`` is a gradient by a convolution's output, and the filters are read turned by half a circle.
    """
    tiles = tl.num_programs(0) // tl.cdiv(N, BLOCK_N)
    tile, image = tl.program_id(0) // tl.cdiv(N, BLOCK_N), tl.program_id(1)
    m_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n_N = tl.program_id(0) % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = m_M < height * width, n_N < N
    head = image // batch
    positions = (image * height).to(tl.int64) * width
    x_ptr += positions * K
    weight_ptr += head.to(tl.int64) * (9 * K * N)

    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(9 * (K // BLOCK_K)):
        tap = step // (K // BLOCK_K)
        k_K = step % (K // BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
        x_MK = shifted_tile(x_ptr, m_M, height, width, tap, k_K, K)
        filter_ptr = weight_ptr + (tap if FORWARD else 8 - tap) * (K * N)
        w_KN = tl.load(
            filter_ptr + k_K[:, None] * stride_k + n_N[None, :] * stride_n, mask=real_N[None, :], other=0.0
        )
        acc_MN = tl.dot(x_MK, w_KN, acc_MN, input_precision="ieee")

    out_MN = m_M[:, None] * N + n_N[None, :]
    real_MN = real_M[:, None] & real_N[None, :]
    if FORWARD:
        acc_MN += tl.load(bias_ptr + head * N + n_N, mask=real_N, other=0.0)[None, :]
    y_MN = acc_MN.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + positions * N + out_MN, y_MN, mask=real_MN)
    if FORWARD:
        # Of the values as they were stored, which are the ones that get normalised.
        y_MN = tl.where(real_MN, y_MN.to(tl.float32), 0.0)
        sum_N = tl.sum(y_MN, 0)
        own_mean_N = sum_N / tl.minimum(BLOCK_M, height * width - tile * BLOCK_M)
        offset_MN = tl.where(real_MN, y_MN - own_mean_N[None, :], 0.0)
        slot = (image.to(tl.int64) * tiles + tile) * N + n_N
        tl.store(partial_ptr + slot, sum_N, mask=real_N)
        tl.store(partial_ptr + images.to(tl.int64) * tiles * N + slot, tl.sum(offset_MN * offset_MN, 0), mask=real_N)


@triton.jit
def weight_gradient(
    x_ptr,  # (I, H*W, K)
    dy_ptr,  # (I, H*W, N)
    dpacked_ptr,  # (heads, 9, N, K) fp32 out
    batch,
    height,
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one tap's gradient of one head's filters, summed over positions and batch in a fixed order."""
    # The nine taps of a tile are neighbours, for they read the same rows.
    tap, block, head = tl.program_id(0) % 9, tl.program_id(0) // 9, tl.program_id(1)
    k_K = block // tl.cdiv(N, BLOCK_N) * BLOCK_K + tl.arange(0, BLOCK_K)
    n_N = block % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Channels past the last are read from within the image and dropped at the end. Where there are none, the compiler
    # has to see that channels are neighbours: only then are 16 bytes at a time copied to shared memory.
    read_K, read_N = k_K, n_N
    if K % BLOCK_K:
        read_K = tl.where(k_K < K, k_K, 0)
    if N % BLOCK_N:
        read_N = tl.where(n_N < N, n_N, 0)

    acc_NK = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    tiles = tl.cdiv(height * width, BLOCK_M)
    for step in range(batch * tiles):
        image = head * batch + step // tiles
        m_M = step % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        positions = (image * height).to(tl.int64) * width
        x_MK = shifted_tile(x_ptr + positions * K, m_M, height, width, tap, read_K, K)
        dy_ptr_MN = dy_ptr + positions * N + m_M[:, None] * N + read_N[None, :]
        dy_MN = tl.load(dy_ptr_MN, mask=(m_M < height * width)[:, None], other=0.0)
        acc_NK = tl.dot(tl.trans(dy_MN), x_MK, acc_NK, input_precision="ieee")

    dpacked_ptr += (head * 9 + tap).to(tl.int64) * (N * K)
    real_NK = (n_N < N)[:, None] & (k_K < K)[None, :]
    tl.store(dpacked_ptr + n_N[:, None] * K + k_K[None, :], acc_NK, mask=real_NK)


@triton.jit
def unpack_filters(dpacked_ptr, dweight_ptr, K: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One output channel's gradient, from ``(heads, 9, N, K)`` to the parameter's ``(heads*N, K, 9)``."""
    filter_index = tl.program_id(0)
    head, n = filter_index // N, filter_index % N
    k_K, tap_9 = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K), tl.arange(0, 16)
    real = (k_K < K)[:, None] & (tap_9 < 9)[None, :]
    source = dpacked_ptr + head.to(tl.int64) * (9 * K * N) + (tap_9[None, :] * N + n) * K + k_K[:, None]
    w = tl.load(source, mask=real)
    tl.store(dweight_ptr + filter_index.to(tl.int64) * (9 * K) + k_K[:, None] * 9 + tap_9[None, :], w, mask=real)


@triton.jit
def pack_filters(weight_ptr, packed_ptr, K: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Filters of one output channel, from the parameter's ``(heads*N, K, 9)`` to ``(heads, 9, N, K)``."""
    filter_index = tl.program_id(0)
    head, n = filter_index // N, filter_index % N
    k_K, tap_9 = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K), tl.arange(0, 16)
    real = (k_K < K)[:, None] & (tap_9 < 9)[None, :]
    w = tl.load(weight_ptr + filter_index.to(tl.int64) * (9 * K) + k_K[:, None] * 9 + tap_9[None, :], mask=real)
    target = packed_ptr + head.to(tl.int64) * (9 * K * N) + (tap_9[None, :] * N + n) * K + k_K[:, None]
    tl.store(target, w.to(packed_ptr.dtype.element_ty), mask=real)
