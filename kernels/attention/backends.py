"""PyTorch's own attention by the name of what computes it, instead of whatever PyTorch would choose.

Each backend has a forward and a backward pass of its own: what was chosen forward, also while a compiled graph was
made of it or while a checkpointed block is computed again, is what autograd goes back through.
"""

import warnings
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.dispatch import DTYPE_NAMES

SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Names -> PyTorch's. ``flash`` alone also runs on the CPU; ``efficient`` alone also runs fp32 on a GPU."""
_TOKENS = 64


def sdpa_by(name: str) -> AbstractContextManager[object]:
    """Have ``scaled_dot_product_attention`` run one of `SDPA_BACKENDS`, or raise RuntimeError where that cannot."""
    return sdpa_kernel(SDPA_BACKENDS[name])


def sdpa_obstacle(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why one of `SDPA_BACKENDS` cannot run forward and backward, or an empty string: as PyTorch itself says.

    A few rows are allocated on ``device``; nothing is computed.
    """
    rows = torch.empty(1, 1, _TOKENS, head_dim, device=device, dtype=dtype, requires_grad=True)
    with sdpa_by(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a line per backend, those that were not asked for included
        try:
            runs = torch._fused_sdp_choice(rows, rows, rows) == SDPA_BACKENDS[name].value
        except RuntimeError:
            runs = False
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        "" if runs else f"PyTorch has no {name} attention in {DTYPE_NAMES[dtype]} with head_dim {head_dim} on {where}"
    )
