"""Backward kernels: one over query tiles (dQ), one over key tiles (dK, dV). No atomics: the same bits every time.

Both recompute the probabilities from prepared queries and keys and the saved log2-sum-exp2, and end with RMSNorm's
own input gradient. With dS the gradient of the natural logits, a normalised query's gradient is the softmax scale
times sum(dS k), and a normalised key's is ln 2 times sum(dS q), since prepared queries carry scale and log2(e).
"""

import triton
import triton.language as tl

from kernels.attention.tiles import SIZES, load_prepared, load_rows, load_weight, norm_gradient, store_rows, tile_of

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def add_to_dq(
    acc, q, d_out, row_lse, dots, k_prepared, v_image, v_text, tile, batch, head, heads, image_length, text_length,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum of dS k after another tile of keys; RAGGED leaves out those past the end."""
    is_text, start, length, _ = tile_of(tile, image_length, text_length, BLOCK_K)
    k = load_prepared(k_prepared, tile * BLOCK_K, BLOCK_K, HEAD_DIM)
    v = load_rows(v_image, v_text, is_text, batch, head, heads, start, length, BLOCK_K, HEAD_DIM, RAGGED)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) - row_lse[:, None]
    if RAGGED:
        logits = tl.where((start + tl.arange(0, BLOCK_K) < length)[None, :], logits, float("-inf"))
    dp = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
    ds = tl.exp2(logits) * (dp - dots[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_q(
    q_image, q_text, q_prepared, k_prepared, v_image, v_text, wq_image, wq_text,
    out_image, out_text, d_out_image, d_out_text, lse, padded_lse, delta, dq_image, dq_text, d_weight,
    heads, image_length, text_length, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PAD_Q: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of one query tile, its share of d(w_q), and for the other kernel both statistics of its rows.

    Grid: query tiles, image then text; batch times heads.

    Args:
        q_prepared: padded by PAD_Q, at most BLOCK_Q; ``k_prepared`` is padded by BLOCK_K.
        padded_lse: ``lse`` again, ``(B H, P)`` padded as ``q_prepared`` is; infinite past the end of a stream.
        delta: rowsum(dO O), ``(B H, P)``; zero past the end.
        d_weight: ``(tiles, B H, D)`` in fp32.
        scale: softmax scale.
    """
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    is_text, start, length, first = tile_of(tl.program_id(0), image_length, text_length, BLOCK_Q)
    tokens = start + tl.arange(0, BLOCK_Q)
    inside = tokens < length
    statistics = tl.program_id(1).to(tl.int64) * (image_length + text_length) + first + tokens

    d_out = load_rows(d_out_image, d_out_text, is_text, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    out = load_rows(out_image, out_text, is_text, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    dots = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    row_lse = tl.load(lse + statistics, mask=inside, other=float("inf"))
    image_rows = tl.cdiv(image_length, PAD_Q) * PAD_Q
    text_rows = tl.cdiv(text_length, PAD_Q) * PAD_Q
    own = tl.program_id(1).to(tl.int64) * (image_rows + text_rows) + tl.where(is_text, image_rows, 0)
    padded = tokens < tl.where(is_text, text_rows, image_rows)
    tl.store(padded_lse + own + tokens, row_lse, mask=padded)
    tl.store(delta + own + tokens, dots, mask=padded)
    offsets = tokens[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    q = tl.load(q_prepared + own * HEAD_DIM + offsets, mask=inside[:, None], other=0.0)

    acc = tl.zeros((BLOCK_Q, HEAD_DIM), tl.float32)
    key_tiles = tl.cdiv(image_length, BLOCK_K) + tl.cdiv(text_length, BLOCK_K)
    k_prepared += tl.program_id(1).to(tl.int64) * key_tiles * BLOCK_K * HEAD_DIM
    image_tiles = tl.cdiv(image_length, BLOCK_K)
    full_image, full_text = image_length // BLOCK_K, text_length // BLOCK_K
    # At most one tile of either stream ends inside: only there keys are masked.
    ragged_image = image_tiles - full_image
    for step in tl.range(0, key_tiles - full_image - full_text, num_stages=1):
        tile = tl.where(step < ragged_image, image_tiles, key_tiles) - 1
        acc = add_to_dq(
            acc, q, d_out, row_lse, dots, k_prepared, v_image, v_text, tile, batch, head, heads, image_length,
            text_length, HEAD_DIM, BLOCK_K, True, PRECISION,
        )  # fmt: skip
    for step in range(0, full_image + full_text):
        tile = tl.where(step < full_image, step, image_tiles + step - full_image)
        acc = add_to_dq(
            acc, q, d_out, row_lse, dots, k_prepared, v_image, v_text, tile, batch, head, heads, image_length,
            text_length, HEAD_DIM, BLOCK_K, False, PRECISION,
        )  # fmt: skip

    rows = load_rows(q_image, q_text, is_text, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    weight = load_weight(tl.where(is_text, wq_text, wq_image), HEAD_DIM)
    normed = tl.where(is_text, TEXT_NORM, IMAGE_NORM)
    gradient, share = norm_gradient(acc * scale, rows, weight, normed, eps, HEAD_DIM)
    store_rows(dq_image, dq_text, is_text, gradient, batch, head, heads, start, length, BLOCK_Q, HEAD_DIM)
    if WEIGHT_GRADIENT:
        place = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * HEAD_DIM
        tl.store(d_weight + place + tl.arange(0, HEAD_DIM), share)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_kv(
    k_image, k_text, q_prepared, k_prepared, v_image, v_text, wk_image, wk_text,
    d_out_image, d_out_text, padded_lse, delta, dk_image, dk_text, dv_image, dv_text, d_weight,
    heads, image_length, text_length, eps,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PAD_K: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key tile, and its share of d(w_k).

    Grid: key tiles, image then text; batch times heads. Past the end of a stream of queries an infinite log-sum-exp
    makes every probability 0.

    Args:
        q_prepared: padded by BLOCK_Q, as ``padded_lse`` and ``delta`` are; ``k_prepared`` is padded by PAD_K.
        d_weight: ``(tiles, B H, D)`` in fp32.
    """
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    is_text, start, length, _ = tile_of(tl.program_id(0), image_length, text_length, BLOCK_K)
    tokens = start + tl.arange(0, BLOCK_K)
    inside = tokens < length
    image_rows = tl.cdiv(image_length, PAD_K) * PAD_K
    text_rows = tl.cdiv(text_length, PAD_K) * PAD_K
    own = tl.program_id(1).to(tl.int64) * (image_rows + text_rows) + tl.where(is_text, image_rows, 0)
    offsets = tokens[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    k = tl.load(k_prepared + own * HEAD_DIM + offsets, mask=inside[:, None], other=0.0)
    v = load_rows(v_image, v_text, is_text, batch, head, heads, start, length, BLOCK_K, HEAD_DIM)

    dk = tl.zeros((BLOCK_K, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_K, HEAD_DIM), tl.float32)
    query_tiles = tl.cdiv(image_length, BLOCK_Q) + tl.cdiv(text_length, BLOCK_Q)
    first = tl.program_id(1).to(tl.int64) * (query_tiles * BLOCK_Q)
    for tile in range(0, query_tiles):
        text_queries, query, queries, _ = tile_of(tile, image_length, text_length, BLOCK_Q)
        rows = first + tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        row_lse, dots = tl.load(padded_lse + rows), tl.load(delta + rows)
        q = load_prepared(q_prepared, first + tile * BLOCK_Q, BLOCK_Q, HEAD_DIM)
        d_out = load_rows(
            d_out_image, d_out_text, text_queries, batch, head, heads, query, queries, BLOCK_Q, HEAD_DIM
        )
        p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) - row_lse[None, :])
        dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
        ds = p * (dp - dots[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    store_rows(dv_image, dv_text, is_text, dv, batch, head, heads, start, length, BLOCK_K, HEAD_DIM)
    # Rows past the end may hold infinities, which their zero keys would turn into NaN in the weight's gradient.
    upstream = tl.where(inside[:, None], dk * LN_2, 0.0)
    rows = load_rows(k_image, k_text, is_text, batch, head, heads, start, length, BLOCK_K, HEAD_DIM)
    weight = load_weight(tl.where(is_text, wk_text, wk_image), HEAD_DIM)
    normed = tl.where(is_text, TEXT_NORM, IMAGE_NORM)
    gradient, share = norm_gradient(upstream, rows, weight, normed, eps, HEAD_DIM)
    store_rows(dk_image, dk_text, is_text, gradient, batch, head, heads, start, length, BLOCK_K, HEAD_DIM)
    if WEIGHT_GRADIENT:
        place = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * HEAD_DIM
        tl.store(d_weight + place + tl.arange(0, HEAD_DIM), share)
