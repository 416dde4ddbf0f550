"""What lies between and behind the convolutions: GroupNorm's statistics and gradient, and the logits.

Sums over positions come as one partial sum per tile and are added in a fixed order by one program per group, so
results do not change from run to run. See the package for names.
"""

import triton
import triton.language as tl

SLOPE = tl.constexpr(0.2)
"""Of LeakyReLU."""
IMAGES = ["images"]
"""Not specialised on its value: of a single image, one head's of one sample, 1 would be a constant without a type."""


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


@triton.jit(do_not_specialize=IMAGES)
def finish_statistics(
    partial_ptr,  # (2, I, T, C) fp32: sums, and squared spreads around each tile's own mean
    gamma_ptr,  # (heads, C) fp32
    beta_ptr,  # (heads, C) fp32
    moments_ptr,  # (5, I, C) fp32 out: scale, shift, mean and rstd of the group, mean of the channel
    images,
    batch,
    positions,
    tiles,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One group of one image. Spreads are merged (Chan et al. 1979): a difference of squares would cancel."""
    image, c_C = tl.program_id(0), tl.arange(0, BLOCK_C)
    own_C = c_C < GROUP
    channel_C = tl.program_id(1) * GROUP + c_C
    row_ptr = partial_ptr + image.to(tl.int64) * tiles * C + channel_C
    spread_ptr = row_ptr + images.to(tl.int64) * tiles * C

    total_C = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for tile in range(tiles):
        total_C += tl.load(row_ptr + tile * C, mask=own_C, other=0.0)
    mean = tl.sum(total_C) / (positions * GROUP)
    spread_C = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for tile in range(tiles):
        count = tl.minimum(TILE, positions - tile * TILE)
        offset_C = tl.load(row_ptr + tile * C, mask=own_C, other=0.0) / count - mean
        spread_C += tl.load(spread_ptr + tile * C, mask=own_C, other=0.0) + tl.where(
            own_C, count * offset_C * offset_C, 0.0
        )
    rstd = 1 / tl.sqrt(tl.sum(spread_C) / (positions * GROUP) + eps)

    head = image // batch
    scale_C = rstd * tl.load(gamma_ptr + head * C + channel_C, mask=own_C, other=0.0)
    shift_C = tl.load(beta_ptr + head * C + channel_C, mask=own_C, other=0.0) - mean * scale_C
    out_ptr, step = moments_ptr + image.to(tl.int64) * C + channel_C, images.to(tl.int64) * C
    tl.store(out_ptr, scale_C, mask=own_C)
    tl.store(out_ptr + step, shift_C, mask=own_C)
    tl.store(out_ptr + 2 * step, tl.zeros_like(scale_C) + mean, mask=own_C)
    tl.store(out_ptr + 3 * step, tl.zeros_like(scale_C) + rstd, mask=own_C)
    tl.store(out_ptr + 4 * step, total_C / positions, mask=own_C)


@triton.jit(do_not_specialize=IMAGES)
def finish_gradients(
    partial_ptr,  # (2, I, T, C) fp32, see `activation_sums`
    moments_ptr,  # (5, I, C) fp32
    gamma_ptr,  # (heads, C) fp32
    centre_ptr,  # (2, I, C) fp32 out: what `normalise_gradient` takes off, constant and per normalised input
    dparameters_ptr,  # (3, I, C) fp32 out: gradients of gamma, beta and the convolution's bias, per image
    images,
    batch,
    positions,
    tiles,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One group of one image."""
    image, c_C = tl.program_id(0), tl.arange(0, BLOCK_C)
    own_C = c_C < GROUP
    channel_C = tl.program_id(1) * GROUP + c_C
    step = images.to(tl.int64) * C
    row_ptr = partial_ptr + image.to(tl.int64) * tiles * C + channel_C
    dbeta_C = tl.zeros((BLOCK_C,), dtype=tl.float32)
    dgamma_C = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for tile in range(tiles):
        dbeta_C += tl.load(row_ptr + tile * C, mask=own_C, other=0.0)
        dgamma_C += tl.load(row_ptr + step * tiles + tile * C, mask=own_C, other=0.0)

    scale_C, _, mean_C, rstd_C = moments(moments_ptr, images, image, channel_C, own_C, C)
    gamma_C = tl.load(gamma_ptr + image // batch * C + channel_C, mask=own_C, other=0.0)
    constant_C = rstd_C * tl.sum(gamma_C * dbeta_C) / (positions * GROUP)
    slope_C = rstd_C * tl.sum(gamma_C * dgamma_C) / (positions * GROUP)
    own_ptr = image.to(tl.int64) * C + channel_C
    tl.store(centre_ptr + own_ptr, constant_C, mask=own_C)
    tl.store(centre_ptr + step + own_ptr, slope_C, mask=own_C)
    # The sum of dy over positions: the mean of the channel says what its normalised inputs add up to.
    channel_mean_C = tl.load(moments_ptr + 4 * step + own_ptr, mask=own_C, other=0.0)
    dbias_C = scale_C * dbeta_C - positions * (constant_C + slope_C * (channel_mean_C - mean_C) * rstd_C)
    tl.store(dparameters_ptr + own_ptr, dgamma_C, mask=own_C)
    tl.store(dparameters_ptr + step + own_ptr, dbeta_C, mask=own_C)
    tl.store(dparameters_ptr + 2 * step + own_ptr, dbias_C, mask=own_C)


@triton.jit(do_not_specialize=IMAGES)
def activate(
    y_ptr,  # (I, H*W, C), the norm's input
    moments_ptr,  # (5, I, C) fp32
    h_ptr,  # (I, H*W, C) out
    images,
    positions,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """GroupNorm and LeakyReLU of a tile of one image."""
    image = tl.program_id(1)
    m_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c_C = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real_C, real_MC = c_C < C, (m_M < positions)[:, None] & (c_C < C)[None, :]
    offset_MC = image.to(tl.int64) * positions * C + m_M[:, None] * C + c_C[None, :]
    scale_C, shift_C, _, _ = moments(moments_ptr, images, image, c_C, real_C, C)
    y_MC = tl.load(y_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    h_MC = leaky(y_MC * scale_C[None, :] + shift_C[None, :])
    tl.store(h_ptr + offset_MC, h_MC.to(h_ptr.dtype.element_ty), mask=real_MC)


@triton.jit(do_not_specialize=IMAGES)
def activation_sums(
    dh_ptr,  # (I, H*W, C), gradient by LeakyReLU's output
    y_ptr,  # (I, H*W, C), the norm's input
    moments_ptr,  # (5, I, C) fp32
    partial_ptr,  # (2, I, T, C) fp32 out: a tile's sums of the gradient by the norm's output, as it is and times its
    # normalised input
    images,
    positions,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What `finish_gradients` adds up, of a tile of one image."""
    image, tile = tl.program_id(1), tl.program_id(0)
    m_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    c_C = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real_C, real_MC = c_C < C, (m_M < positions)[:, None] & (c_C < C)[None, :]
    scale_C, shift_C, mean_C, rstd_C = moments(moments_ptr, images, image, c_C, real_C, C)
    offset_MC = image.to(tl.int64) * positions * C + m_M[:, None] * C + c_C[None, :]
    dh_MC = tl.load(dh_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    y_MC = tl.load(y_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    dn_MC = leaky_gradient(dh_MC, y_MC * scale_C[None, :] + shift_C[None, :])
    slot = (image.to(tl.int64) * tl.num_programs(0) + tile) * C + c_C
    tl.store(partial_ptr + slot, tl.sum(dn_MC, 0), mask=real_C)
    step = images.to(tl.int64) * tl.num_programs(0) * C
    tl.store(partial_ptr + step + slot, tl.sum(dn_MC * (y_MC - mean_C[None, :]), 0) * rstd_C, mask=real_C)


@triton.jit(do_not_specialize=IMAGES)
def normalise_gradient(
    gradient_ptr,  # (I, H*W, C), by LeakyReLU's output; becomes the gradient by the norm's input
    y_ptr,  # (I, H*W, C), the norm's input
    moments_ptr,  # (5, I, C) fp32
    centre_ptr,  # (2, I, C) fp32
    images,
    positions,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """LeakyReLU's and GroupNorm's input gradient, in place."""
    image = tl.program_id(1)
    m_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c_C = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real_C, real_MC = c_C < C, (m_M < positions)[:, None] & (c_C < C)[None, :]
    offset_MC = image.to(tl.int64) * positions * C + m_M[:, None] * C + c_C[None, :]
    scale_C, shift_C, mean_C, rstd_C = moments(moments_ptr, images, image, c_C, real_C, C)
    centre = centre_ptr + image.to(tl.int64) * C + c_C
    constant_C = tl.load(centre, mask=real_C, other=0.0)
    slope_C = tl.load(centre + images.to(tl.int64) * C, mask=real_C, other=0.0) * rstd_C
    dh_MC = tl.load(gradient_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    y_MC = tl.load(y_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    dn_MC = leaky_gradient(dh_MC, y_MC * scale_C[None, :] + shift_C[None, :])
    dy_MC = scale_C[None, :] * dn_MC - constant_C[None, :] - slope_C[None, :] * (y_MC - mean_C[None, :])
    tl.store(gradient_ptr + offset_MC, dy_MC.to(gradient_ptr.dtype.element_ty), mask=real_MC)


@triton.jit(do_not_specialize=IMAGES)
def logits(
    y_ptr,  # (I, H*W, C)
    moments_ptr,  # (5, I, C) fp32
    weight_ptr,  # (I, C) fp32, each image's own
    bias_ptr,  # (heads,) fp32
    logit_ptr,  # (I, H*W) fp32 out
    images,
    batch,
    positions,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of one image's logits: norm, LeakyReLU and the last 1x1 convolution."""
    image = tl.program_id(1)
    m_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    logit_M = tl.zeros((BLOCK_M,), dtype=tl.float32) + tl.load(bias_ptr + image // batch)
    for block in range(tl.cdiv(C, BLOCK_C)):
        c_C = block * BLOCK_C + tl.arange(0, BLOCK_C)
        real_C, real_MC = c_C < C, (m_M < positions)[:, None] & (c_C < C)[None, :]
        scale_C, shift_C, _, _ = moments(moments_ptr, images, image, c_C, real_C, C)
        weight_C = tl.load(weight_ptr + image.to(tl.int64) * C + c_C, mask=real_C, other=0.0)
        offset_MC = image.to(tl.int64) * positions * C + m_M[:, None] * C + c_C[None, :]
        y_MC = tl.load(y_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
        logit_M += tl.sum(leaky(y_MC * scale_C[None, :] + shift_C[None, :]) * weight_C[None, :], 1)
    tl.store(logit_ptr + image.to(tl.int64) * positions + m_M, logit_M, mask=m_M < positions)


@triton.jit(do_not_specialize=IMAGES)
def logits_gradient(
    dlogit_ptr,  # (I, H*W) fp32
    y_ptr,  # (I, H*W, C)
    moments_ptr,  # (5, I, C) fp32
    weight_ptr,  # (I, C) fp32
    dh_ptr,  # (I, H*W, C) out, gradient by LeakyReLU's output
    partial_ptr,  # (3, I, T, C) fp32 out: the two of `activation_sums`, and the gradient of the weights
    images,
    positions,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of one image's gradient, from the logits back to the last LeakyReLU's output."""
    image, tile = tl.program_id(1), tl.program_id(0)
    m_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    c_C = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real_C, real_MC = c_C < C, (m_M < positions)[:, None] & (c_C < C)[None, :]
    scale_C, shift_C, mean_C, rstd_C = moments(moments_ptr, images, image, c_C, real_C, C)
    weight_C = tl.load(weight_ptr + image.to(tl.int64) * C + c_C, mask=real_C, other=0.0)
    dlogit_M = tl.load(dlogit_ptr + image.to(tl.int64) * positions + m_M, mask=m_M < positions, other=0.0)
    offset_MC = image.to(tl.int64) * positions * C + m_M[:, None] * C + c_C[None, :]
    y_MC = tl.load(y_ptr + offset_MC, mask=real_MC, other=0.0).to(tl.float32)
    n_MC = y_MC * scale_C[None, :] + shift_C[None, :]
    dh_MC = (dlogit_M[:, None] * weight_C[None, :]).to(dh_ptr.dtype.element_ty)
    tl.store(dh_ptr + offset_MC, dh_MC, mask=real_MC)

    dn_MC = leaky_gradient(
        dh_MC.to(tl.float32), n_MC
    )  # of what was stored; zero past the last position, as dlogit is
    slot = (image.to(tl.int64) * tl.num_programs(0) + tile) * C + c_C
    step = images.to(tl.int64) * tl.num_programs(0) * C
    tl.store(partial_ptr + slot, tl.sum(dn_MC, 0), mask=real_C)
    tl.store(partial_ptr + step + slot, tl.sum(dn_MC * (y_MC - mean_C[None, :]), 0) * rstd_C, mask=real_C)
    tl.store(partial_ptr + 2 * step + slot, tl.sum(dlogit_M[:, None] * leaky(n_MC), 0), mask=real_C)
