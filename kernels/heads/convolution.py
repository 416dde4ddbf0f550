"""3x3 convolutions as implicit GEMM over shifted loads, for all heads at once; see the package for names.

One kernel serves both convolutions and both of their input gradients: a gradient by the input is the convolution
of the output's gradient with turned filters. What precedes a convolution happens as its input is loaded, what
follows it happens on the accumulator, so that an activation passes through memory once.
"""

import triton
import triton.language as tl

SLOPE = tl.constexpr(0.2)
"""Of LeakyReLU."""


@triton.jit
def leaky(x):
    """LeakyReLU."""
    return tl.where(x > 0, x, x * SLOPE)


@triton.jit
def leaky_gradient(gradient, x):
    """Gradient by LeakyReLU's input ``x``; at zero as on the negative side, which is PyTorch's choice."""
    return tl.where(x > 0, gradient, gradient * SLOPE)


@triton.jit
def moments(moments_ptr, images, image, channel, real, CHANNELS: tl.constexpr):
    """Scale, shift, mean and rstd of an image's channels; ``moments_ptr`` is ``(5, I, CHANNELS)``."""
    row = moments_ptr + image.to(tl.int64) * CHANNELS + channel
    step = images.to(tl.int64) * CHANNELS
    scale = tl.load(row, mask=real, other=0.0)
    shift = tl.load(row + step, mask=real, other=0.0)
    mean = tl.load(row + 2 * step, mask=real, other=0.0)
    rstd = tl.load(row + 3 * step, mask=real, other=0.0)
    return scale, shift, mean, rstd


@triton.jit
def shifted_tile(x_ptr, m_M, height, width, tap, k_K, K: tl.constexpr):
    """Positions ``m_M`` of an image as tap 0..8 sees them: ``(M, K)`` with zeros outside, and what is inside."""
    down, right = tap // 3 - 1, tap % 3 - 1
    row_M, column_M = m_M // width + down, m_M % width + right
    inside_M = (row_M >= 0) & (row_M < height) & (column_M >= 0) & (column_M < width) & (m_M < height * width)
    source_M = m_M + down * width + right
    tile_MK = tl.load(x_ptr + source_M[:, None] * K + k_K[None, :], mask=inside_M[:, None], other=0.0)
    return tile_MK, inside_M


@triton.jit
def activated(tile_MK, inside_M, scale_K, shift_K):
    """GroupNorm and LeakyReLU on a loaded tile. Padding is zero after the activation, not before it."""
    h_MK = leaky(tile_MK.to(tl.float32) * scale_K[None, :] + shift_K[None, :])
    return tl.where(inside_M[:, None], h_MK, 0.0).to(tile_MK.dtype)


@triton.jit
def convolve(
    x_ptr,  # (I, H*W, K)
    weight_ptr,  # (heads, 9, ...) as the strides say
    bias_ptr,  # (heads, N) fp32; read for EPILOGUE "statistics"
    input_moments_ptr,  # (5, I, K) fp32; read where NORMALISE
    y_ptr,  # (I, H*W, N) out
    activation_ptr,  # (I, H*W, N), the output's input to its norm; read for EPILOGUE "activation"
    activation_moments_ptr,  # (5, I, N) fp32; read for EPILOGUE "activation"
    partial_ptr,  # (2, I, T, N) fp32 out, unless EPILOGUE is "none"
    images,
    batch,
    height,
    width,
    stride_k,
    stride_n,
    K: tl.constexpr,
    N: tl.constexpr,
    TURN: tl.constexpr,
    NORMALISE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one image's convolution.

    TURN reads the filters turned by half a circle. EPILOGUE is "statistics": add the bias and leave the tile's sum
    and its squared spread around the tile's own mean per channel; "activation": ``y`` is a gradient by the
    activation: carry it on to the norm's output, and leave its sum and its product with the normalised input;
    or "none".
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
        x_MK, inside_M = shifted_tile(x_ptr, m_M, height, width, tap, k_K, K)
        if NORMALISE:
            scale_K, shift_K, _, _ = moments(input_moments_ptr, images, image, k_K, k_K < K, K)
            x_MK = activated(x_MK, inside_M, scale_K, shift_K)
        filter_ptr = weight_ptr + (8 - tap if TURN else tap) * (K * N)
        w_KN = tl.load(
            filter_ptr + k_K[:, None] * stride_k + n_N[None, :] * stride_n, mask=real_N[None, :], other=0.0
        )
        acc_MN = tl.dot(x_MK, w_KN, acc_MN, input_precision="ieee")

    out_MN = m_M[:, None] * N + n_N[None, :]
    real_MN = real_M[:, None] & real_N[None, :]
    if EPILOGUE == "statistics":
        acc_MN += tl.load(bias_ptr + head * N + n_N, mask=real_N, other=0.0)[None, :]
    if EPILOGUE == "activation":
        scale_N, shift_N, mean_N, rstd_N = moments(activation_moments_ptr, images, image, n_N, real_N, N)
        input_MN = tl.load(activation_ptr + positions * N + out_MN, mask=real_MN, other=0.0).to(tl.float32)
        acc_MN = leaky_gradient(acc_MN, input_MN * scale_N[None, :] + shift_N[None, :])
    y_MN = acc_MN.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + positions * N + out_MN, y_MN, mask=real_MN)
    if EPILOGUE != "none":
        # Of the values as they were stored, which are the ones that get normalised.
        y_MN = tl.where(real_MN, y_MN.to(tl.float32), 0.0)
        sum_N = tl.sum(y_MN, 0)
        if EPILOGUE == "statistics":
            own_mean_N = sum_N / tl.minimum(BLOCK_M, height * width - tile * BLOCK_M)
            offset_MN = tl.where(real_MN, y_MN - own_mean_N[None, :], 0.0)
            second_N = tl.sum(offset_MN * offset_MN, 0)
        else:
            second_N = tl.sum(y_MN * (input_MN - mean_N[None, :]), 0) * rstd_N
        slot = (image.to(tl.int64) * tiles + tile) * N + n_N
        tl.store(partial_ptr + slot, sum_N, mask=real_N)
        tl.store(partial_ptr + images.to(tl.int64) * tiles * N + slot, second_N, mask=real_N)


@triton.jit
def weight_gradient(
    x_ptr,  # (I, H*W, K)
    moments_ptr,  # (5, I, K) fp32; read where NORMALISE
    dy_ptr,  # (I, H*W, N)
    dweight_ptr,  # (heads, N, K, 9) fp32 out
    images,
    batch,
    height,
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one tap's gradient of one head's filters, summed over positions and batch in a fixed order."""
    # The nine taps of a tile are neighbours: together they fill the lines of memory that each alone leaves gaps in.
    tap, block, head = tl.program_id(0) % 9, tl.program_id(0) // 9, tl.program_id(1)
    k_K = block // tl.cdiv(N, BLOCK_N) * BLOCK_K + tl.arange(0, BLOCK_K)
    n_N = block % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    real_K, real_N = k_K < K, n_N < N

    acc_KN = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    tiles = tl.cdiv(height * width, BLOCK_M)
    for step in range(batch * tiles):
        image = head * batch + step // tiles
        m_M = step % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        positions = (image * height).to(tl.int64) * width
        # Channels past the last are read from within the image and dropped at the end.
        x_MK, inside_M = shifted_tile(x_ptr + positions * K, m_M, height, width, tap, tl.where(real_K, k_K, 0), K)
        if NORMALISE:
            scale_K, shift_K, _, _ = moments(moments_ptr, images, image, k_K, real_K, K)
            x_MK = activated(x_MK, inside_M, scale_K, shift_K)
        dy_MN = tl.load(
            dy_ptr + positions * N + m_M[:, None] * N + n_N[None, :],
            mask=(m_M < height * width)[:, None] & real_N[None, :],
            other=0.0,
        )
        acc_KN = tl.dot(tl.trans(x_MK), dy_MN, acc_KN, input_precision="ieee")

    slot_KN = (n_N[None, :] * K + k_K[:, None]) * 9 + tap
    real_KN = real_K[:, None] & real_N[None, :]
    tl.store(dweight_ptr + head.to(tl.int64) * (9 * K * N) + slot_KN, acc_KN, mask=real_KN)


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
