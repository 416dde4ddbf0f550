"""Pieces that the forward and the backward kernels share.

Legend: B batch, H heads, N tokens of a stream (its length), D head_dim, T image tokens and then text tokens.

- Streams are ``(B, N, H, D)``, as the projections give them, and are never copied together.
- Prepared queries or keys are ``(B H, P, D)``: normalised, weighted, and with every stream padded to whole tiles, so
  that a tile belongs to one stream. P is the padded T.
- Statistics are ``(B H, T)`` in fp32. Logits are in log2 units: queries carry the softmax scale and log2(e).
"""

import triton
import triton.language as tl

SIZES = ["heads", "image_length", "text_length"]
"""One binary serves all of them: a bucket of another length compiles nothing, and runs what the gate has seen."""


@triton.jit
def tile_of(tile, image_length, text_length, ROWS: tl.constexpr):
    """Whether the tile is text, its first token within the stream, the stream's length, and its first row in T."""
    image_tiles = tl.cdiv(image_length, ROWS)
    is_text = tile >= image_tiles
    start = tl.where(is_text, tile - image_tiles, tile) * ROWS
    return is_text, start, tl.where(is_text, text_length, image_length), tl.where(is_text, image_length, 0)


@triton.jit
def load_rows(
    image, text, is_text, batch, head, heads, start, length, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    RAGGED: tl.constexpr = True,
):  # fmt: skip
    """Tokens ``start .. start + ROWS`` of one head of a stream ``(ROWS, D)``, zero past the end.

    Without RAGGED the caller knows that none is.
    """
    rows = start + tl.arange(0, ROWS)
    offsets = rows[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]
    base = tl.where(is_text, text, image) + (batch.to(tl.int64) * length * heads + head) * HEAD_DIM
    if RAGGED:
        return tl.load(base + offsets, mask=rows[:, None] < length, other=0.0)
    return tl.load(base + offsets)


@triton.jit
def store_rows(
    image, text, is_text, tile, batch, head, heads, start, length, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Write ``(ROWS, D)`` to the tokens of one head of a stream, none past the end."""
    rows = start + tl.arange(0, ROWS)
    offsets = rows[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]
    base = tl.where(is_text, text, image) + (batch.to(tl.int64) * length * heads + head) * HEAD_DIM
    tl.store(base + offsets, tile.to(image.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def load_prepared(prepared, start, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Rows of prepared queries or keys ``(ROWS, D)``; ``prepared`` points to the rows of one head."""
    offsets = (start + tl.arange(0, ROWS))[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(prepared + offsets)


@triton.jit
def load_weight(weight, HEAD_DIM: tl.constexpr):
    """A norm weight ``(D,)`` in fp32."""
    return tl.load(weight + tl.arange(0, HEAD_DIM)).to(tl.float32)


@triton.jit
def inverse_rms(rows, normed, eps, HEAD_DIM: tl.constexpr):
    """``(ROWS,)`` inverse root mean squares in fp32, or ones where the stream has no norm."""
    wide = rows.to(tl.float32)
    return tl.where(normed, tl.rsqrt(tl.sum(wide * wide, 1) / HEAD_DIM + eps), 1.0)


@triton.jit
def norm_gradient(upstream, rows, weight, normed, eps, HEAD_DIM: tl.constexpr):
    """Gradient of RMSNorm's input ``(ROWS, D)``, and of its weight ``(D,)`` summed over these rows.

    Args:
        upstream: gradient of the normalised, weighted rows.
    """
    rstd = inverse_rms(rows, normed, eps, HEAD_DIM)
    unit = rows.to(tl.float32) * rstd[:, None]
    inner = upstream * weight[None, :]
    radial = tl.where(normed, tl.sum(inner * unit, 1) / HEAD_DIM, 0.0)
    return rstd[:, None] * (inner - unit * radial[:, None]), tl.sum(upstream * unit, 0)


@triton.jit(do_not_specialize=SIZES)
def prepare(
    image, text, weight_image, weight_text, prepared, heads, image_length, text_length, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr,
):  # fmt: skip
    """Prepared queries or keys of both streams, every one of the P rows written; without PADDED, of the T rows.

    Grid: tiles of BLOCK rows, image then text; batch times heads.
    """
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    is_text, start, length, before = tile_of(tl.program_id(0), image_length, text_length, BLOCK)
    rows = load_rows(image, text, is_text, batch, head, heads, start, length, BLOCK, HEAD_DIM)
    rstd = inverse_rms(rows, tl.where(is_text, TEXT_NORM, IMAGE_NORM), eps, HEAD_DIM) * scale
    weight = load_weight(tl.where(is_text, weight_text, weight_image), HEAD_DIM)
    ready = (rows.to(tl.float32) * rstd[:, None] * weight[None, :]).to(prepared.dtype.element_ty)
    row = tl.arange(0, BLOCK)
    if PADDED:
        first = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * BLOCK
        tl.store(prepared + first * HEAD_DIM + row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :], ready)
    else:
        tl.store(joint_rows(prepared, before + start, image_length + text_length, BLOCK, HEAD_DIM), ready,
                 mask=(start + row < length)[:, None])  # fmt: skip


@triton.jit
def joint_rows(joint, first, tokens, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Pointers to rows ``first ..`` of this program's head in a joint sequence ``(B H, T, D)``."""
    rows = tl.program_id(1).to(tl.int64) * tokens + first + tl.arange(0, ROWS)
    return joint + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit(do_not_specialize=SIZES)
def unprepare(
    upstream, image, text, weight_image, weight_text, d_image, d_text, d_weight,
    heads, image_length, text_length, eps,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Gradients of both streams of queries or keys from the gradient ``upstream`` of the T joint, normalised rows.

    Grid: tiles of BLOCK rows, image then text; batch times heads.

    Args:
        d_weight: each tile's share of the norm weights' gradients, ``(tiles, B H, D)`` in fp32.
    """
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    is_text, start, length, before = tile_of(tl.program_id(0), image_length, text_length, BLOCK)
    inside = start + tl.arange(0, BLOCK) < length
    given = joint_rows(upstream, before + start, image_length + text_length, BLOCK, HEAD_DIM)
    gradient = tl.load(given, mask=inside[:, None], other=0.0).to(tl.float32)
    rows = load_rows(image, text, is_text, batch, head, heads, start, length, BLOCK, HEAD_DIM)
    weight = load_weight(tl.where(is_text, weight_text, weight_image), HEAD_DIM)
    normed = tl.where(is_text, TEXT_NORM, IMAGE_NORM)
    gradient, share = norm_gradient(gradient, rows, weight, normed, eps, HEAD_DIM)
    store_rows(d_image, d_text, is_text, gradient, batch, head, heads, start, length, BLOCK, HEAD_DIM)
    if WEIGHT_GRADIENT:
        place = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * HEAD_DIM
        tl.store(d_weight + place + tl.arange(0, HEAD_DIM), share)
