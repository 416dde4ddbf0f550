"""Launches of the attention kernels, on tensors that `streams.check` has passed."""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.attention import configs
from kernels.attention.backward import attention_backward_kv, attention_backward_q
from kernels.attention.configs import Launch
from kernels.attention.forward import attention_forward
from kernels.attention.streams import Norms, Streams
from kernels.attention.tiles import prepare, unprepare
from kernels.dispatch import DTYPE_NAMES, architecture, cdiv, on

_PASS = {"num_warps": configs.PREPARE_WARPS, "num_stages": 1, "enable_fp_fusion": True}


class NormWeights(NamedTuple):
    """Norm weights ``(D,)``, all of one dtype: kernels choose between pointers; ones for a stream without norm."""

    q: Tensor
    k: Tensor
    text_q: Tensor
    text_k: Tensor


class Launcher:
    """Sizes, norm weights and compile-time constants that all launches on the same streams share."""

    def __init__(self, x: Streams, norms: Norms, eps: float) -> None:
        self.x, self.norms, self.eps = x, norms, eps
        batch, self.image_length, self.heads, self.head_dim = x.q.shape
        self.text_length = x.text_q.shape[1]
        self.rows = batch * self.heads
        self.scale = 1 / math.sqrt(self.head_dim)
        self.log2_scale = self.scale * math.log2(math.e)
        self.weights = _weights(norms, x.q.device, self.head_dim)
        self.lengths = (self.heads, self.image_length, self.text_length)
        self.dtype = DTYPE_NAMES[x.q.dtype]
        self.arch = architecture(x.q.device)
        self.constants: dict[str, Any] = {
            "HEAD_DIM": self.head_dim,
            "IMAGE_NORM": norms.q is not None,
            "TEXT_NORM": norms.text_q is not None,
        }

    def config(self, kernel: str) -> Launch:
        """The launch configuration of a kernel for this device, dtype and head_dim."""
        return configs.launch(kernel, self.arch, self.dtype, self.head_dim)

    def tiles(self, block: int) -> int:
        """Tiles of both streams, each padded to whole tiles."""
        return cdiv(self.image_length, block) + cdiv(self.text_length, block)

    def options(self, config: Launch) -> dict[str, Any]:
        """Constants and launch options of an attention kernel."""
        blocks = {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k, "PRECISION": configs.precision(self.dtype)}
        launch = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
        return self.constants | blocks | launch

    def statistics(self) -> Tensor:
        """An uninitialised fp32 buffer ``(B, H, T)`` with one number per query."""
        size = (self.x.q.shape[0], self.heads, self.image_length + self.text_length)
        return torch.empty(size, dtype=torch.float32, device=self.x.q.device)

    def prepared(
        self, image: Tensor, text: Tensor, weight: Tensor, text_weight: Tensor, scale: float, block: int,
        padded: bool = True,
    ) -> Tensor:  # fmt: skip
        """Normalised, weighted, scaled rows ``(B H, P, D)`` with every stream padded to multiples of ``block``.

        Args:
            padded: False leaves the padding out: ``(B H, T, D)``.
        """
        tiles = self.tiles(block)
        length = tiles * block if padded else self.image_length + self.text_length
        out = image.new_empty(self.rows, length, self.head_dim)
        prepare[(tiles, self.rows)](
            image, text, weight, text_weight, out, *self.lengths, scale, self.eps, BLOCK=block, PADDED=padded,
            **self.constants, **_PASS,
        )  # fmt: skip
        return out

    def unprepared(
        self, upstream: Tensor, image: Tensor, text: Tensor, weight: Tensor, text_weight: Tensor,
        weight_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of both streams before their norms, and each tile's part of the norm weights' gradients.

        ``upstream`` ``(B H, T, D)`` is the gradient of the normalised rows.
        """
        tiles, block = self.tiles(configs.PACK_ROWS), configs.PACK_ROWS
        gradients = torch.empty_like(image), torch.empty_like(text)
        count = tiles if weight_gradient else 0
        share = torch.empty(count, self.rows, self.head_dim, dtype=torch.float32, device=image.device)
        unprepare[(tiles, self.rows)](
            upstream, image, text, weight, text_weight, *gradients, share, *self.lengths, self.eps, BLOCK=block,
            WEIGHT_GRADIENT=weight_gradient, **self.constants, **_PASS,
        )  # fmt: skip
        return *gradients, share


def _weights(norms: Norms, device: torch.device, head_dim: int) -> NormWeights:
    dtypes = {weight.dtype for weight in norms if weight is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    ones = _ones(device, dtype, head_dim)
    return NormWeights(*(ones if weight is None else weight.to(dtype) for weight in norms))


@cache
def _ones(device: torch.device, dtype: torch.dtype, head_dim: int) -> Tensor:
    """The norm weights of a stream without norm."""
    return torch.ones(head_dim, dtype=dtype, device=device)


def forward(x: Streams, norms: Norms, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of both streams and the log2-sum-exp2 ``(B, H, T)``."""
    with on(x.q.device):
        launcher = Launcher(x, norms, eps)
        outs = torch.empty_like(x.q), torch.empty_like(x.text_q)
        lse, weights, block = launcher.statistics(), launcher.weights, launcher.config("forward").block_k
        k = launcher.prepared(x.k, x.text_k, weights.k, weights.text_k, 1.0, block)
        normed = norms.q is not None and (norms.text_q is not None or launcher.text_length == 0)
        # fp16 holds no probability that lacks the maximum, and a stream without norm has no bound.
        guarded = normed and launcher.dtype != "fp16"
        for bounded in (True, False) if guarded else (False,):
            _launch_forward(launcher, k, bounded, guarded, outs, lse)
    return *outs, lse


def _launch_forward(
    launcher: Launcher, k: Tensor, bounded: bool, guarded: bool, outs: tuple[Tensor, Tensor], lse: Tensor
) -> None:
    x, config, weights = launcher.x, launcher.config("forward"), launcher.weights
    attention_forward[(launcher.tiles(config.block_q), launcher.rows)](
        x.q, x.text_q, k, x.v, x.text_v, weights.q, weights.k, weights.text_q, weights.text_k, *outs, lse,
        *launcher.lengths, launcher.log2_scale, launcher.eps,
        BOUNDED=bounded, GUARDED=guarded, **launcher.options(config),
    )  # fmt: skip


def backward(
    d_out: Tensor, d_text: Tensor, x: Streams, norms: Norms, outs: tuple[Tensor, Tensor], lse: Tensor, eps: float,
    weight_gradient: bool,
) -> tuple[Streams, Norms]:  # fmt: skip
    """Gradients of the streams, and of the norm weights if asked for; the same bits every time."""
    with on(x.q.device):
        launcher, gradients = Launcher(x, norms, eps), Streams(*map(torch.empty_like, x))
        weights, on_q, on_kv = launcher.weights, launcher.config("backward_q"), launcher.config("backward_kv")
        q = launcher.prepared(x.q, x.text_q, weights.q, weights.text_q, launcher.log2_scale, on_kv.block_q)
        k = launcher.prepared(x.k, x.text_k, weights.k, weights.text_k, 1.0, on_q.block_k)
        statistics = lse.new_empty(2, launcher.rows, launcher.tiles(on_kv.block_q) * on_kv.block_q)
        shares = [statistics, statistics]  # not written
        if weight_gradient:
            tiles = launcher.tiles(on_q.block_q), launcher.tiles(on_kv.block_k)
            shares = [lse.new_empty(count, launcher.rows, launcher.head_dim) for count in tiles]
        attention_backward_q[(launcher.tiles(on_q.block_q), launcher.rows)](
            x.q, x.text_q, q, k, x.v, x.text_v, weights.q, weights.text_q, *outs, d_out, d_text, lse, *statistics,
            gradients.q, gradients.text_q, shares[0], *launcher.lengths, launcher.scale, eps,
            PAD_Q=on_kv.block_q, WEIGHT_GRADIENT=weight_gradient, **launcher.options(on_q),
        )  # fmt: skip
        attention_backward_kv[(launcher.tiles(on_kv.block_k), launcher.rows)](
            x.k, x.text_k, q, k, x.v, x.text_v, weights.k, weights.text_k, d_out, d_text, *statistics,
            gradients.k, gradients.text_k, gradients.v, gradients.text_v, shares[1], *launcher.lengths, eps,
            PAD_K=on_q.block_k, WEIGHT_GRADIENT=weight_gradient, **launcher.options(on_kv),
        )  # fmt: skip
    if not weight_gradient:
        return gradients, Norms(None, None, None, None)
    return gradients, reduce_shares(launcher, shares, (on_q.block_q, on_kv.block_k))


def reduce_shares(launcher: Launcher, shares: list[Tensor], blocks: tuple[int, int]) -> Norms:
    """Norm weights' gradients: the sums of the tiles' parts, in a fixed order."""
    (q, text_q), (k, text_k) = (
        share.split([first := cdiv(launcher.image_length, block), len(share) - first])
        for share, block in zip(shares, blocks, strict=True)
    )
    sums = (part.sum((0, 1)) for part in (q, k, text_q, text_k))
    given = launcher.norms
    return Norms(*(None if w is None else total.to(w.dtype) for w, total in zip(given, sums, strict=True)))
