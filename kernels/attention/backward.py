"""Backward kernels: one over query tiles (dQ), one over key tiles (dK, dV). No atomics: the same bits every time.

Both recompute the probabilities from prepared queries and keys and the saved log2-sum-exp2, and end with RMSNorm's
own input gradient. With dS the gradient of the natural logits, a normalised query's gradient is the softmax scale
times sum(dS k), and a normalised key's is ln 2 times sum(dS q), since prepared queries carry scale and log2(e).
"""

import triton
import triton.language as tl

from kernels.attention.tiles import SIZES, load_prepared, load_rows, load_weight, norm_gradient, store_rows, tile_of

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_q(
    q_image, q_text, q_prepared, k_prepared, v_image, v_text, wq_image, wq_text,
    out_image, out_text, d_out_image, d_out_text, lse, delta, dq_image, dq_text, d_weight,
    heads, image_length, text_length, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PAD_Q: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of one query tile, its ``delta`` = rowsum(dO O) for the other kernel, and its share of d(w_q).

    Grid: query tiles, image then text; batch times heads.

    Args:
        q_prepared: padded by PAD_Q; ``k_prepared`` is padded by BLOCK_K.
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
    tl.store(delta + statistics, dots, mask=inside)
    row_lse = tl.load(lse + statistics, mask=inside, other=float("inf"))
    image_rows = tl.cdiv(image_length, PAD_Q) * PAD_Q
    text_rows = tl.cdiv(text_length, PAD_Q) * PAD_Q
    own = tl.program_id(1).to(tl.int64) * (image_rows + text_rows) + tl.where(is_text, image_rows, 0)
    offsets = tokens[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    q = tl.load(q_prepared + own * HEAD_DIM + offsets, mask=inside[:, None], other=0.0)

    acc = tl.zeros((BLOCK_Q, HEAD_DIM), tl.float32)
    key_tiles = tl.cdiv(image_length, BLOCK_K) + tl.cdiv(text_length, BLOCK_K)
    k_prepared += tl.program_id(1).to(tl.int64) * key_tiles * BLOCK_K * HEAD_DIM
    for tile in range(0, key_tiles):
        text_keys, key, keys, _ = tile_of(tile, image_length, text_length, BLOCK_K)
        k = load_prepared(k_prepared, tile * BLOCK_K, BLOCK_K, HEAD_DIM)
        v = load_rows(v_image, v_text, text_keys, batch, head, heads, key, keys, BLOCK_K, HEAD_DIM)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) - row_lse[:, None]
        p = tl.exp2(tl.where((key + tl.arange(0, BLOCK_K) < keys)[None, :], logits, float("-inf")))
        dp = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - dots[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)

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
    d_out_image, d_out_text, lse, delta, dk_image, dk_text, dv_image, dv_text, d_weight,
    heads, image_length, text_length, eps,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PAD_K: tl.constexpr,
    IMAGE_NORM: tl.constexpr, TEXT_NORM: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key tile, and its share of d(w_k).

    Grid: key tiles, image then text; batch times heads. Past the end of a stream of queries an infinite log-sum-exp
    makes every probability 0.

    Args:
        q_prepared: padded by BLOCK_Q; ``k_prepared`` is padded by PAD_K.
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
    statistics = tl.program_id(1).to(tl.int64) * (image_length + text_length)
    query_tiles = tl.cdiv(image_length, BLOCK_Q) + tl.cdiv(text_length, BLOCK_Q)
    q_prepared += tl.program_id(1).to(tl.int64) * query_tiles * BLOCK_Q * HEAD_DIM
    for tile in range(0, query_tiles):
        text_queries, query, queries, first = tile_of(tile, image_length, text_length, BLOCK_Q)
        asked = query + tl.arange(0, BLOCK_Q)
        row_lse = tl.load(lse + statistics + first + asked, mask=asked < queries, other=float("inf"))
        dots = tl.load(delta + statistics + first + asked, mask=asked < queries, other=0.0)
        q = load_prepared(q_prepared, tile * BLOCK_Q, BLOCK_Q, HEAD_DIM)
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
