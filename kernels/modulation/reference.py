"""adaLN's elementwise passes in plain PyTorch: the definition of correct."""

import torch
from torch import Tensor
from torch.nn import functional as F


def modulated_layer_norm_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``; see `kernels.modulated_layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]


def gated_residual_reference(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """``x + gate * y``; see `kernels.gated_residual`."""
    return x + gate[:, None] * y


def norm_gradients(gradient: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `modulated_layer_norm_reference` by ``x``, ``scale`` and ``shift``, without autograd."""
    wide, dy = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, gradient))
    variance, mean = torch.var_mean(wide, -1, keepdim=True, correction=0)
    rstd = (variance + eps).rsqrt()
    normal = (wide - mean) * rstd
    dn = dy * (1 + scale[:, None].to(dy.dtype))
    dx = rstd * (dn - dn.mean(-1, keepdim=True) - normal * (dn * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype), (dy * normal).sum(1).to(x.dtype), dy.sum(1).to(x.dtype)


def residual_gradients(gradient: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gated_residual_reference` by ``gate`` and ``y``; that by ``x`` is ``gradient`` itself."""
    dgate = (gradient.to(torch.promote_types(y.dtype, torch.float32)) * y).sum(1)
    return dgate.to(y.dtype), gate[:, None] * gradient
