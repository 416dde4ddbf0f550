"""What the ahead-of-time gate compiles: every configuration of every attention kernel, as `launch` launches it."""

from collections.abc import Iterator
from typing import Any

from kernels.architectures import ARCHITECTURES
from kernels.attention import backward, forward, tiles
from kernels.attention.configs import ATTENTION_HEAD_DIMS, PACK_ROWS, PREPARE_WARPS, Launch, launch, precision
from kernels.shipped import Shipped

_DTYPES = ("bf16", "fp16", "fp32")
_CONSTANTS: dict[str, dict[str, Any]] = {
    "forward": {"BOUNDED": False, "GUARDED": True},
    "bounded": {"BOUNDED": True, "GUARDED": True},
    "backward_q": {"WEIGHT_GRADIENT": True},
    "backward_kv": {"WEIGHT_GRADIENT": True},
}
"""Of the kernels with matrix products."""
_FUNCTIONS = {
    "prepare": tiles.prepare,
    "pack": tiles.prepare,
    "unprepare": tiles.unprepare,
    "forward": forward.attention_forward,
    "bounded": forward.attention_forward,
    "backward_q": backward.attention_backward_q,
    "backward_kv": backward.attention_backward_kv,
}


def shipped() -> Iterator[Shipped]:
    """Every configuration of every kernel, with both norms and all gradients: the most that a launch can ask for."""
    for arch in ARCHITECTURES:
        for dtype in _DTYPES:
            for head_dim in ATTENTION_HEAD_DIMS:
                for block in sorted(_prepared_blocks(arch, dtype, head_dim)):
                    rows = Launch(block, block, PREPARE_WARPS, 1)
                    yield _shipped("prepare", rows, {"PADDED": True}, arch, dtype, head_dim)
                rows = Launch(PACK_ROWS, PACK_ROWS, PREPARE_WARPS, 1)
                yield _shipped("pack", rows, {"PADDED": False}, arch, dtype, head_dim)
                yield _shipped("unprepare", rows, {"WEIGHT_GRADIENT": True}, arch, dtype, head_dim)
                for kernel, constants in _CONSTANTS.items():
                    if (kernel, dtype) != ("bounded", "fp16"):
                        chosen = launch("forward" if kernel == "bounded" else kernel, arch, dtype, head_dim)
                        yield _shipped(kernel, chosen, constants, arch, dtype, head_dim)


def _prepared_blocks(arch: int, dtype: str, head_dim: int) -> set[int]:
    """Rows per tile of the kernels that read prepared queries or keys."""
    on_forward, on_q, on_kv = (launch(k, arch, dtype, head_dim) for k in ("forward", "backward_q", "backward_kv"))
    return {on_forward.block_k, on_q.block_k, on_kv.block_q}


def _shipped(kernel: str, chosen: Launch, constants: dict[str, Any], arch: int, dtype: str, head_dim: int) -> Shipped:
    known = constants | {
        "HEAD_DIM": head_dim, "BLOCK": chosen.block_k, "BLOCK_Q": chosen.block_q, "BLOCK_K": chosen.block_k,
        "PAD_Q": launch("backward_kv", arch, dtype, head_dim).block_q,
        "PAD_K": launch("backward_q", arch, dtype, head_dim).block_k,
        "IMAGE_NORM": True, "TEXT_NORM": True, "PRECISION": precision(dtype),
    }  # fmt: skip
    names = _FUNCTIONS[kernel].arg_names
    return Shipped(
        name=f"{kernel} {dtype} d{head_dim} {chosen.block_q}x{chosen.block_k}",
        arch=arch,
        kernel=_FUNCTIONS[kernel],
        signature={name: _type(name, dtype) for name in names if name not in known},
        constexprs={name: known[name] for name in names if name in known},
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        blocks=chosen.blocks,
        tensor_cores=dtype != "fp32" and kernel in _CONSTANTS,
    )


def _type(name: str, dtype: str) -> str:
    """Triton's type of an argument."""
    if name in ("heads", "image_length", "text_length"):
        return "i32"
    if name in ("scale", "eps"):
        return "fp32"
    return "*fp32" if name in ("lse", "padded_lse", "delta", "d_weight") else f"*{dtype}"
