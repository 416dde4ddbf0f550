"""Hinge reductions in two stages: sums per tile, then per head in the order of the tiles, the same in every run.

G heads, S = B*H*W logits of a head, T tiles of a head.
"""

import triton
import triton.language as tl

TILE, ADDED = 2048, 256
"""Logits per program of the first stage, and sums that the second stage adds at a time."""


@triton.jit
def margin(x, ROLE: tl.constexpr):
    """A logit's term of the loss. NaN stays NaN, which a maximum does not guarantee."""
    value = -x if ROLE == "generator" else (1 - x if ROLE == "real" else 1 + x)
    return value if ROLE == "generator" else tl.where(value < 0, 0.0, value)


@triton.jit
def hinge_tile(logit_ptr, partial_ptr, size, ROLE: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of a tile of ``(G, S)`` logits into ``(3, G, T)``: loss, logit, and how many have the correct sign."""
    tile, head = tl.program_id(0), tl.program_id(1)
    s = tile * BLOCK + tl.arange(0, BLOCK)
    real = s < size
    x = tl.load(logit_ptr + head.to(tl.int64) * size + s, mask=real, other=0.0)
    right = x > 0 if ROLE == "real" else x < 0
    slot, step = partial_ptr + head * tl.num_programs(0) + tile, tl.num_programs(0) * tl.num_programs(1)
    tl.store(slot, tl.sum(tl.where(real, margin(x, ROLE), 0.0)))
    tl.store(slot + step, tl.sum(x))
    tl.store(slot + 2 * step, tl.sum(tl.where(right, 1.0, 0.0)))  # what is not there is loaded as zero: not right


@triton.jit
def hinge_finish(partial_ptr, mean_ptr, size, tiles, BLOCK: tl.constexpr):
    """Means ``(3, G)`` of the sums ``(3, G, T)``."""
    row, t = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, tiles, BLOCK):
        total += tl.load(partial_ptr + row * tiles + start + t, mask=start + t < tiles, other=0.0)
    tl.store(mean_ptr + row, tl.sum(total) / size)


@triton.jit
def hinge_gradient(gradient_ptr, logit_ptr, out_ptr, size, ROLE: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient ``(G, S)`` by the logits, given that ``(G,)`` by the losses."""
    head, s = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = head.to(tl.int64) * size
    x = tl.load(logit_ptr + row + s, mask=s < size, other=0.0)
    gradient = tl.load(gradient_ptr + head) / size
    if ROLE == "fake":
        gradient = tl.where(1 + x > 0, gradient, 0.0)
    elif ROLE == "real":
        gradient = tl.where(1 - x > 0, -gradient, 0.0)
    else:
        gradient = -gradient + tl.zeros_like(x)
    tl.store(out_ptr + row + s, gradient, mask=s < size)
