"""The backward pass by a library's attention, for GPUs where that beats ours: PyTorch's flash attention or cuDNN's.

It wants packed tensors, so queries, keys and values are normalised and concatenated again: here in plain PyTorch, by
kernels in `kernels.attention.packed`; the forward pass stays fused. On the CPU the same runs through PyTorch's CPU
flash attention, which is how it is tested.
"""

import math

import torch
from torch import Tensor

from kernels.attention.reference import joint, norm_backward, rms_norm, split
from kernels.attention.streams import Norms, Streams

aten = torch.ops.aten


def backward(
    d_out: Tensor, d_text: Tensor, x: Streams, norms: Norms, outs: tuple[Tensor, Tensor], lse: Tensor, eps: float,
    library: str,
) -> tuple[Streams, Norms]:  # fmt: skip
    """Gradients of the streams and of the norm weights, from the saved outputs and log2-sum-exp2."""
    dtype, length = x.q.dtype, x.q.shape[1]
    q = joint(rms_norm(x.q, norms.q, eps).to(dtype), rms_norm(x.text_q, norms.text_q, eps).to(dtype))
    k = joint(rms_norm(x.k, norms.k, eps).to(dtype), rms_norm(x.text_k, norms.text_k, eps).to(dtype))
    packed = (joint(d_out, d_text), q, k, joint(x.v, x.text_v), joint(*outs), lse * math.log(2))
    dq, dk, dv = packed_backward(*packed, library)
    dq, dq_text, norm_q, norm_q_text = norm_backward(dq, x.q, x.text_q, norms.q, norms.text_q, length, eps)
    dk, dk_text, norm_k, norm_k_text = norm_backward(dk, x.k, x.text_k, norms.k, norms.text_k, length, eps)
    dv, dv_text = split(dv, length)
    return Streams(dq, dk, dv, dq_text, dk_text, dv_text), Norms(norm_q, norm_k, norm_q_text, norm_k_text)


def packed_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, library: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK, dV of ``(B, H, T, D)`` tensors; ``lse`` ``(B, H, T)`` in natural units.

    ``d_out`` has to lie in memory as ``out`` does: cuDNN's gradients are wrong otherwise, without an error.
    """
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(d_out, q, k, v, out, lse, 0.0, False)
    tokens = q.shape[2]
    if library == "cudnn":
        unused = torch.zeros((), dtype=torch.int64, device=q.device)  # the dropout's random state
        saved = (d_out, q, k, v, out, lse[..., None], unused, unused)
        return aten._scaled_dot_product_cudnn_attention_backward(*saved, None, None, None, tokens, tokens, 0.0, False)
    unused = torch.empty(0, dtype=torch.int64, device=q.device)
    return aten._scaled_dot_product_flash_attention_backward(
        d_out, q, k, v, out, lse, None, None, tokens, tokens, 0.0, False, unused, unused
    )
