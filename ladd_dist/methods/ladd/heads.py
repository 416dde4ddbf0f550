"""The trainable part of the discriminator: one conv head on each tapped block of the frozen teacher.

All heads are one module with stacked parameters and run together, by `kernels.grouped_heads` or as PyTorch's
grouped convolutions: 38 small heads one after the other would leave a GPU idle. A head reads its block's image
tokens on their true 2-D grid and gives one logit per position, conditioned on noise level and pooled text, and on the
student's time if it is told, by projection (Miyato & Koyama 2018):

    h = lrelu(norm(conv3x3(lrelu(norm(conv3x3(project(x)))))));  logit = w . h + <V c, h>

Shape legend: G heads, B batch, N = H*W image tokens, D teacher width, K head width, O the width after the second
convolution.
"""

import math
from functools import partial
from typing import Literal

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import (
    DTYPE_NAMES,
    HEAD_WIDTH_STEP,
    Choice,
    HeadWeights,
    KernelUnavailable,
    choose,
    fastest,
    grouped_heads,
    grouped_heads_reference,
    grouped_heads_slope,
    project_tokens,
    triton_obstacle,
)
from ladd_dist.config import DiscriminatorConfig
from ladd_dist.diffusion.flow import TIMESTEP_SCALE
from ladd_dist.errors import LaddError

_FREQUENCIES = 256

Gradients = Literal["once", "twice", "inputs"]
"""What may be differentiated: logits by features and weights; logits and the squared gradient by features, which R1
asks for, by weights alone, which the kernels have no formula for; or logits by features alone, which spares the work
on weights."""


class GroupedConv(nn.Module):
    """Parameters of ``heads`` independent 3x3 convolutions, laid out for one grouped call."""

    def __init__(self, heads: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads * channels_out, channels_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(heads * channels_out))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (9 * channels_in)))


def tapped_blocks(config: DiscriminatorConfig, depth: int) -> tuple[int, ...]:
    """Which of a teacher's ``depth`` blocks carry a head, ascending.

    Raises:
        LaddError: if ``config.blocks`` names none, or one that the teacher does not have.
    """
    taps = tuple(range(depth)) if config.blocks is None else tuple(sorted(set(config.blocks)))
    if not taps or taps[-1] >= depth:
        raise LaddError(f"discriminator.blocks={config.blocks}: the teacher has blocks 0 to {depth - 1}")
    return taps


class DiscriminatorHeads(nn.Module):
    """``G`` independent heads over the teacher's features. Parameters are fp32.

    Args:
        config: widths; ``blocks`` picks the tapped blocks.
        depth: blocks of the teacher.
        width: D, channels of the teacher's image tokens.
        pooled_width: P, channels of the pooled text embedding.
        implementation: see `choose_heads`. Parameters are the same.

    Raises:
        LaddError: if ``config.blocks`` names blocks that the teacher does not have.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        depth: int,
        width: int,
        pooled_width: int,
        implementation: str = "reference",
    ) -> None:
        super().__init__()
        self.taps = tapped_blocks(config, depth)
        heads, mid, out, embed = len(self.taps), config.width, config.out_width, config.cond_width
        self.project = nn.Parameter(torch.randn(heads, width, mid) / math.sqrt(width))
        self.project_bias = nn.Parameter(torch.zeros(heads, 1, mid))
        self.implementation, self.groups, self.on_grid = implementation, config.groups, config.convolve == "grid"
        self.conv1 = GroupedConv(heads, mid, mid)
        self.norm1 = nn.GroupNorm(heads * config.groups, heads * mid)
        self.conv2 = GroupedConv(heads, mid, out)
        self.norm2 = nn.GroupNorm(heads * config.groups, heads * out)
        self.logit = nn.Parameter(torch.randn(heads, out) / math.sqrt(out))
        self.logit_bias = nn.Parameter(torch.zeros(heads))
        self.conditioned = config.conditioned
        if config.conditioned:
            self.frequencies = Timesteps(_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.embed_time = nn.Linear(_FREQUENCIES, embed)
            self.embed_pooled = nn.Linear(pooled_width, embed)
            self.embed_student_time = nn.Linear(_FREQUENCIES, embed) if config.student_time else None
            self.embed = nn.Linear(embed, heads * out)

    def forward(
        self,
        features: list[Tensor],
        grid: tuple[int, int],
        t: Tensor,
        pooled: Tensor,
        first: int = 0,
        gradients: Gradients = "once",
        student_time: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Judge features with all heads, or with the few that they belong to.

        Args:
            features: one ``(B, N, D)`` per head, in the order of ``taps``.
            grid: ``(H, W)`` with H * W = N.
            t: noise levels ``(B,)`` of the latents that the features are of.
            pooled: pooled text embedding ``(B, P)``.
            first: the head that the first of the features belongs to.
            gradients: see `Gradients`.
            student_time: times ``(B,)`` from which the student drew these samples, for heads that are told them.

        Returns:
            Logits ``(len(features), B, H, W)``, fp32; ``twice`` also `_squared_slope` of each head and sample.
        """
        if features[0].shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{features[0].shape[1]} tokens do not fill a {grid[0]}x{grid[1]} grid")
        part = slice(first, first + len(features))
        weights, project_weight, project_bias = self._weights(part, t, pooled, student_time)
        if gradients == "inputs":
            weights = HeadWeights(*(w.detach() for w in weights))
            project_weight, project_bias = project_weight.detach(), project_bias.detach()
        x_GBNK = project_tokens(features, project_weight, project_bias, _compute_dtype(features[0]))
        with torch.autocast(x_GBNK.device.type, enabled=False):
            x_GBHWK = x_GBNK.unflatten(2, grid if self.on_grid else (1, -1))
            if gradients == "twice":
                logits, slope = grouped_heads_slope(x_GBHWK, weights, self.groups, self.implementation)
                return logits.flatten(2).unflatten(2, grid), _squared_slope(slope, project_weight)
            if self.implementation == "reference":
                logits = grouped_heads_reference(x_GBHWK, weights, self.groups)
            else:
                logits = grouped_heads(x_GBHWK, weights, self.groups, "triton")
            return logits.flatten(2).unflatten(2, grid)

    def _weights(
        self, part: slice, t: Tensor, pooled: Tensor, student_time: Tensor | None
    ) -> tuple[HeadWeights, Tensor, Tensor]:
        """Parameters of some heads, the logit's with each sample's condition, and their projections."""
        layers = [p for c, n in ((self.conv1, self.norm1), (self.conv2, self.norm2)) for p in _parameters(c, n)]
        heads = len(self.taps)
        rows = (p.unflatten(0, (heads, -1))[part].flatten(0, 1) for p in layers)
        logit_GBO = self.logit[part, None].expand(-1, len(t), -1)
        if self.conditioned:
            logit_GBO = logit_GBO + self._condition(t, pooled, student_time)[:, part].transpose(0, 1).float()
        weights = HeadWeights(*(*rows, logit_GBO.contiguous(), self.logit_bias[part]))
        return weights, self.project[part], self.project_bias[part]

    def _condition(self, t: Tensor, pooled: Tensor, student_time: Tensor | None) -> Tensor:
        """Per-sample addition to the logit weights, ``(B, G, O)``."""
        waves = self.frequencies(t.float() * TIMESTEP_SCALE)
        shared = self.embed_time(waves) + self.embed_pooled(pooled.to(waves.dtype))
        if self.embed_student_time is not None:
            if student_time is None:
                raise ValueError("heads of discriminator.student_time=true are told the student's times")
            shared = shared + self.embed_student_time(self.frequencies(student_time.float() * TIMESTEP_SCALE))
        embedded = self.embed(F.silu(shared)).unflatten(1, self.logit.shape)
        return embedded / math.sqrt(self.logit.shape[1])


def _squared_slope(slope_GBHWK: Tensor, project_GDK: Tensor) -> Tensor:
    """Square of the gradient of each sample's logits, all positions together, by the features ``(G, B)``, fp32.

    From the gradient g by the projected tokens, ``|g P'|^2 = g (P' P) g``: nothing of the features' size is made.
    """
    exact = torch.promote_types(slope_GBHWK.dtype, torch.float32)
    g = slope_GBHWK.flatten(2, 3).flatten(1, 2).to(exact)
    gram = project_GDK.mT @ project_GDK
    return (torch.bmm(g, gram) * g).view(*slope_GBHWK.shape[:2], -1).sum(2)


def _parameters(conv: GroupedConv, norm: nn.GroupNorm) -> tuple[Tensor, ...]:
    return conv.weight, conv.bias, norm.weight, norm.bias


def _compute_dtype(features: Tensor) -> torch.dtype:
    kind = features.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def choose_heads(
    setting: Literal["auto", "triton", "torch"],
    config: DiscriminatorConfig,
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Choice:
    """What `DiscriminatorHeads` computes with, and why.

    ``auto`` takes the kernels where they were measured to be faster on this GPU, nearest in the number of heads.

    Args:
        setting: ``kernels.heads``.
        dtype: compute precision.

    Raises:
        LaddError: if the kernels are asked for and cannot run.
    """
    measured = partial(_measured, config, heads, device, dtype)
    try:
        return choose("kernels.heads", setting, _obstacle(config, device), measured)
    except KernelUnavailable as why:
        raise LaddError(f"kernels.heads=triton: {why}; or set kernels.heads=auto or torch") from None


def _obstacle(config: DiscriminatorConfig, device: torch.device) -> str:
    """Why the kernels cannot run, or an empty string."""
    for key in ("width", "out_width"):
        if getattr(config, key) % HEAD_WIDTH_STEP:
            return f"make discriminator.{key} a multiple of {HEAD_WIDTH_STEP}"
    return triton_obstacle(device)


def _measured(config: DiscriminatorConfig, heads: int, device: torch.device, dtype: torch.dtype) -> Choice:
    gpu, name = torch.cuda.get_device_name(device), DTYPE_NAMES[dtype]
    where = {"op": "grouped_heads", "gpu": gpu, "dtype": name, "k": config.width, "n": config.out_width}
    found = fastest(where, ("heads", heads), ["triton"], ["grouped"])
    if found is None:
        return Choice(
            "reference", f"nothing was measured on {gpu} in {name} at these widths: run make gpu-check there"
        )
    times = found[1]["p50_ms"]
    reason = f"ms for {found[1]['heads']} heads on {gpu}: triton {times['triton']:.3f}, torch {times['grouped']:.3f}"
    return Choice("triton" if found[0] == "triton" else "reference", reason)
