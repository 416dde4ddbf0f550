"""The backward pass by a library's attention on a GPU: our kernels pack its operands and unpack its gradients.

Norms and their gradients are one kernel each; the matrix products are `library.packed_backward`'s.
"""

import math

from torch import Tensor

from kernels.attention.configs import PACK_ROWS
from kernels.attention.launch import Launcher, reduce_shares
from kernels.attention.library import packed_backward
from kernels.attention.reference import joint, split
from kernels.attention.streams import Norms, Streams
from kernels.dispatch import on


def backward(
    d_out: Tensor, d_text: Tensor, x: Streams, norms: Norms, outs: tuple[Tensor, Tensor], lse: Tensor, eps: float,
    weight_gradient: bool, library: str,
) -> tuple[Streams, Norms]:  # fmt: skip
    """Gradients of the streams, and of the norm weights if asked for, by ``flash`` or ``cudnn``."""
    with on(x.q.device):
        launcher = Launcher(x, norms, eps)
        weights, shape = launcher.weights, (x.q.shape[0], launcher.heads, -1, launcher.head_dim)
        on_q = (x.q, x.text_q, weights.q, weights.text_q)
        on_k = (x.k, x.text_k, weights.k, weights.text_k)
        q, k = (launcher.prepared(*rows, 1.0, PACK_ROWS, padded=False).view(shape) for rows in (on_q, on_k))
        dq, dk, dv = packed_backward(
            joint(d_out, d_text), q, k, joint(x.v, x.text_v), joint(*outs), lse * math.log(2), library
        )
        q_image, q_text, share_q = launcher.unprepared(dq.contiguous(), *on_q, weight_gradient)
        k_image, k_text, share_k = launcher.unprepared(dk.contiguous(), *on_k, weight_gradient)
        v_image, v_text = split(dv, launcher.image_length)
        gradients = Streams(q_image, k_image, v_image, q_text, k_text, v_text)
        if not weight_gradient:
            return gradients, Norms(None, None, None, None)
        return gradients, reduce_shares(launcher, [share_q, share_k], (PACK_ROWS, PACK_ROWS))
