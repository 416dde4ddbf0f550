"""Forward kernel: one query tile over all keys, image then text, in one loop.

QK RMSNorm bounds every logit by sqrt(D) max|w_q w_k| log2(e) (Cauchy-Schwarz). Up to `BOUND_LIMIT` the softmax needs
no running maximum: exp2 of the logits and their sums stay far inside the range of fp32 and bf16. Which of the two
holds is read from the weights on the device, by a bounded and an online launch of which one ends at once: no
synchronisation, and no cache that could go stale while the weights are trained.
"""

import triton
import triton.language as tl

from kernels.attention.tiles import SIZES, inverse_rms, load_prepared, load_rows, load_weight, store_rows, tile_of

BOUND_LIMIT = tl.constexpr(60.0)
"""Largest logit bound in log2 units for which the maximum is left out."""


@triton.jit
def logit_bound(wq_image, wk_image, wq_text, wk_text, text_length, scale, HEAD_DIM: tl.constexpr):
    """Bound of every logit in log2 units, given that all streams are normalised."""
    qi, ki = load_weight(wq_image, HEAD_DIM), load_weight(wk_image, HEAD_DIM)
    qt, kt = load_weight(wq_text, HEAD_DIM), load_weight(wk_text, HEAD_DIM)
    text = tl.maximum(tl.abs(qt * kt), tl.maximum(tl.abs(qi * kt), tl.abs(qt * ki)))
    largest = tl.maximum(tl.abs(qi * ki), tl.where(text_length > 0, text, 0.0))
    return tl.max(largest, 0) * scale * HEAD_DIM


@triton.jit
def attend(
    acc, total, maximum, q, k_prepared, v_image, v_text, tile, batch, head, heads, image_length, text_length,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, RAGGED: tl.constexpr, BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax's three accumulators after another tile of keys; RAGGED leaves out those past the end."""
    is_text, start, length, _ = tile_of(tile, image_length, text_length, BLOCK_K)
    k = load_prepared(k_prepared, tile * BLOCK_K, BLOCK_K, HEAD_DIM)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if RAGGED:
        logits = tl.where((start + tl.arange(0, BLOCK_K) < length)[None, :], logits, float("-inf"))
    if not BOUNDED:
        larger = tl.maximum(maximum, tl.max(logits, 1))
        rescale = tl.exp2(maximum - larger)
        acc, total, maximum = acc * rescale[:, None], total * rescale, larger
        logits = logits - larger[:, None]
    p = tl.exp2(logits)
    total += tl.sum(p, 1)
    v = load_rows(v_image, v_text, is_text, batch, head, heads, start, length, BLOCK_K, HEAD_DIM, RAGGED)
    return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION), total, maximum


@triton.jit(do_not_specialize=SIZES)
def attention_forward(
    q_image, q_text, k_prepared, v_image, v_text, wq_image, wk_image, wq_text, wk_text, out_image, out_text, lse,
    heads, image_length, text_length, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr, BOUNDED: tl.constexpr, GUARDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Output of one query tile and its log2-sum-exp2. Grid: query tiles, image then text; batch times heads.

    Args:
        k_prepared: padded by BLOCK_K.
        scale: softmax scale times log2(e).
        GUARDED: run only if the bound of the logits calls for this value of BOUNDED.
    """
    if GUARDED:
        bound = logit_bound(wq_image, wk_image, wq_text, wk_text, text_length, scale, HEAD_DIM)
        if (bound <= BOUND_LIMIT) != BOUNDED:
            return
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    is_text, start, length, first = tile_of(tl.program_id(0), image_length, text_length, BLOCK_Q)
    rows = load_rows(q_image, q_text, is_text, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    rstd = inverse_rms(rows, tl.where(is_text, TEXT_NORM, IMAGE_NORM), eps, HEAD_DIM) * scale
    weight = load_weight(tl.where(is_text, wq_text, wq_image), HEAD_DIM)
    q = (rows.to(tl.float32) * rstd[:, None] * weight[None, :]).to(rows.dtype)

    acc = tl.zeros((BLOCK_Q, HEAD_DIM), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    maximum = tl.full((BLOCK_Q,), 0.0 if BOUNDED else float("-inf"), tl.float32)
    key_tiles = tl.cdiv(image_length, BLOCK_K) + tl.cdiv(text_length, BLOCK_K)
    k_prepared += tl.program_id(1).to(tl.int64) * key_tiles * BLOCK_K * HEAD_DIM
    full_image, full_text = image_length // BLOCK_K, text_length // BLOCK_K
    image_tiles = tl.cdiv(image_length, BLOCK_K)
    # At most one tile of either stream ends inside: only there keys are masked.
    ragged_image = image_tiles - full_image
    for step in tl.range(0, ragged_image + tl.cdiv(text_length, BLOCK_K) - full_text, num_stages=1):
        tile = tl.where(step < ragged_image, image_tiles, key_tiles) - 1
        acc, total, maximum = attend(
            acc, total, maximum, q, k_prepared, v_image, v_text, tile, batch, head, heads, image_length, text_length,
            HEAD_DIM, BLOCK_K, True, BOUNDED, PRECISION,
        )  # fmt: skip
    for step in range(0, full_image + full_text):
        tile = tl.where(step < full_image, step, image_tiles + step - full_image)
        acc, total, maximum = attend(
            acc, total, maximum, q, k_prepared, v_image, v_text, tile, batch, head, heads, image_length, text_length,
            HEAD_DIM, BLOCK_K, False, BOUNDED, PRECISION,
        )  # fmt: skip

    out = acc / total[:, None]
    store_rows(out_image, out_text, is_text, out, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    tokens = start + tl.arange(0, BLOCK_Q)
    statistics = lse + tl.program_id(1).to(tl.int64) * (image_length + text_length) + first
    tl.store(statistics + tokens, maximum + tl.log2(total), mask=tokens < length)
