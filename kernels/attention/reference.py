"""Joint attention in plain PyTorch: the definition of correct, for any device and for float64.

Statistics and sums are at least fp32, whatever the inputs are. Holds the probabilities ``(B, H, T, T)``; names and
shapes as in `kernels.attention.streams`.
"""

import math

import torch
from torch import Tensor

from kernels.attention.streams import Norms, Streams

Wide = tuple[Tensor, Tensor, Tensor]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension, or ``x`` itself where there is no weight; at least fp32."""
    x = _wide(x)
    return x if weight is None else x * _inverse_rms(x, eps) * _wide(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def joint(image: Tensor, text: Tensor) -> Tensor:
    """Two streams ``(B, N, H, D)`` as one sequence ``(B, H, T, D)``."""
    return torch.cat([image, text], 1).transpose(1, 2)


def split(x: Tensor, image_length: int) -> tuple[Tensor, Tensor]:
    """The inverse of `joint`: contiguous copies, since an operator's outputs must not share memory."""
    image, text = x.transpose(1, 2).split([image_length, x.shape[2] - image_length], 1)
    return image.clone(memory_format=torch.contiguous_format), text.clone(memory_format=torch.contiguous_format)


def _joint_inputs(x: Streams, norms: Norms, eps: float) -> Wide:
    q = joint(rms_norm(x.q, norms.q, eps), rms_norm(x.text_q, norms.text_q, eps))
    k = joint(rms_norm(x.k, norms.k, eps), rms_norm(x.text_k, norms.text_k, eps))
    return q, k, _wide(joint(x.v, x.text_v))


def forward(x: Streams, norms: Norms, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of both streams in the inputs' dtype, and the log2-sum-exp2 ``(B, H, T)`` of the logits."""
    q, k, v = _joint_inputs(x, norms, eps)
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    out = (logits.softmax(-1) @ v).to(x.q.dtype)
    return *split(out, x.q.shape[1]), logits.logsumexp(-1) / math.log(2)


def backward(
    d_out: Tensor, d_text: Tensor, x: Streams, norms: Norms, outs: tuple[Tensor, Tensor], lse: Tensor, eps: float
) -> tuple[Streams, Norms]:
    """Gradients of the streams and of the norm weights, from the saved outputs and log2-sum-exp2."""
    q, k, v = _joint_inputs(x, norms, eps)
    scale, length = 1 / math.sqrt(q.shape[-1]), x.q.shape[1]
    d, out = _wide(joint(d_out, d_text)), _wide(joint(*outs))
    p = torch.exp2(q @ k.mT * (scale / math.log(2)) - lse[..., None])
    ds = p * (d @ v.mT - (d * out).sum(-1, keepdim=True)) * scale
    dq, dq_text, norm_q, norm_q_text = norm_backward(ds @ k, x.q, x.text_q, norms.q, norms.text_q, length, eps)
    dk, dk_text, norm_k, norm_k_text = norm_backward(ds.mT @ q, x.k, x.text_k, norms.k, norms.text_k, length, eps)
    dv, dv_text = (g.to(x.v.dtype) for g in split(p.mT @ d, length))
    return Streams(dq, dk, dv, dq_text, dk_text, dv_text), Norms(norm_q, norm_k, norm_q_text, norm_k_text)


def norm_backward(
    upstream: Tensor, image: Tensor, text: Tensor, weight: Tensor | None, text_weight: Tensor | None,
    length: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of both streams before their norms ``(B, N, H, D)``, and of the weights, from the joint gradient."""
    d_image, d_text = split(upstream, length)
    image_gradient, weight_gradient = _stream_backward(d_image, image, weight, eps)
    text_gradient, text_weight_gradient = _stream_backward(d_text, text, text_weight, eps)
    return image_gradient, text_gradient, weight_gradient, text_weight_gradient


def _stream_backward(upstream: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor | None]:
    if weight is None:
        return upstream.to(x.dtype), None
    rstd = _inverse_rms(_wide(x), eps)
    unit, inner = _wide(x) * rstd, _wide(upstream) * _wide(weight)
    gradient = rstd * (inner - unit * (inner * unit).mean(-1, keepdim=True))
    return gradient.to(x.dtype), (upstream * unit).sum((0, 1, 2)).to(weight.dtype)
