"""adaLN's elementwise passes. A program takes ROWS tokens of one sample, a whole token at a time.

B samples, N tokens, D channels, T tiles of a sample. The gradients of what a sample's tokens share are summed
per tile and then over tiles in order, so results do not change from run to run. All arithmetic is fp32.
"""

import triton
import triton.language as tl


@triton.jit
def load_row(ptr, d, width):
    """A row of ``width`` channels in fp32, zero behind them."""
    return tl.load(ptr + d, mask=d < width, other=0.0).to(tl.float32)


@triton.jit
def store_row(ptr, d, width, value):
    """The row in the dtype of ``ptr``."""
    tl.store(ptr + d, value.to(ptr.dtype.element_ty), mask=d < width)


@triton.jit
def normalise(x, d, width, eps):
    """The normalised row, zero behind its end, and its rstd."""
    mean = tl.sum(x) / width
    centred = tl.where(d < width, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    return centred * rstd, rstd


@triton.jit
def norm_forward(x_ptr, scale_ptr, shift_ptr, out_ptr, tokens, width, eps, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """``normalise(x) * (1 + scale) + shift``; ``x`` and ``out`` are ``(B, N, D)``, the others ``(B, D)``."""
    sample, d = tl.program_id(1), tl.arange(0, BLOCK_D)
    gain, shift = 1 + load_row(scale_ptr + sample * width, d, width), load_row(shift_ptr + sample * width, d, width)
    first = tl.program_id(0) * ROWS
    for token in range(first, tl.minimum(first + ROWS, tokens)):
        row = (sample.to(tl.int64) * tokens + token) * width
        normal, _ = normalise(load_row(x_ptr + row, d, width), d, width, eps)
        store_row(out_ptr + row, d, width, normal * gain + shift)


@triton.jit
def norm_backward(
    gradient_ptr, x_ptr, scale_ptr, dx_ptr, partial_ptr, tokens, width, eps,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient by ``x``, and tiles' sums for scale and shift in ``partial`` ``(2, B, T, D)`` fp32."""
    sample, d = tl.program_id(1), tl.arange(0, BLOCK_D)
    gain = 1 + load_row(scale_ptr + sample * width, d, width)
    dscale, dshift = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    first = tl.program_id(0) * ROWS
    for token in range(first, tl.minimum(first + ROWS, tokens)):
        row = (sample.to(tl.int64) * tokens + token) * width
        normal, rstd = normalise(load_row(x_ptr + row, d, width), d, width, eps)
        dy = load_row(gradient_ptr + row, d, width)
        dscale += dy * normal
        dshift += dy
        dn = dy * gain
        dx = rstd * (dn - tl.sum(dn) / width - normal * (tl.sum(dn * normal) / width))
        store_row(dx_ptr + row, d, width, dx)
    slot = (sample.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * width
    step = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * width
    store_row(partial_ptr + slot, d, width, dscale)
    store_row(partial_ptr + step + slot, d, width, dshift)


@triton.jit
def residual_forward(x_ptr, gate_ptr, y_ptr, out_ptr, tokens, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """``x + gate * y``; ``gate`` is ``(B, D)``, the others ``(B, N, D)``."""
    sample, d = tl.program_id(1), tl.arange(0, BLOCK_D)
    gate = load_row(gate_ptr + sample * width, d, width)
    first = tl.program_id(0) * ROWS
    for token in range(first, tl.minimum(first + ROWS, tokens)):
        row = (sample.to(tl.int64) * tokens + token) * width
        store_row(out_ptr + row, d, width, load_row(x_ptr + row, d, width) + gate * load_row(y_ptr + row, d, width))


@triton.jit
def residual_backward(
    gradient_ptr, gate_ptr, y_ptr, dy_ptr, partial_ptr, tokens, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Gradient by ``y``, and tiles' sums for the gate in ``partial`` ``(B, T, D)`` fp32."""
    sample, d = tl.program_id(1), tl.arange(0, BLOCK_D)
    gate, dgate = load_row(gate_ptr + sample * width, d, width), tl.zeros((BLOCK_D,), tl.float32)
    first = tl.program_id(0) * ROWS
    for token in range(first, tl.minimum(first + ROWS, tokens)):
        row = (sample.to(tl.int64) * tokens + token) * width
        gradient = load_row(gradient_ptr + row, d, width)
        dgate += gradient * load_row(y_ptr + row, d, width)
        store_row(dy_ptr + row, d, width, gate * gradient)
    slot = (sample.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * width
    store_row(partial_ptr + slot, d, width, dgate)
