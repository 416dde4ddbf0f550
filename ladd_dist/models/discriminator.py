"""The trainable part of the discriminator: one conv head behind each tapped block of the frozen teacher.

All heads are one module with stacked parameters, run as grouped convolutions: 38 small heads one after the
other would leave a GPU idle. A head reads its block's image tokens on their true 2-D grid and gives one logit
per position, conditioned on noise level and pooled text by projection (Miyato & Koyama 2018):

    h = conv3x3(lrelu(norm(conv3x3(lrelu(project(x))))));  logit = w . h + <V c, h>

Shape legend: G heads, B batch, N = H*W image tokens, D teacher width, K head width, E embedding width.
"""

import math

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from ladd_dist.config import DiscriminatorConfig
from ladd_dist.errors import LaddError
from ladd_dist.flow import TIMESTEP_SCALE

_FREQUENCIES = 256
_SLOPE = 0.2


class GroupedConv(nn.Module):
    """``heads`` independent 3x3 convolutions in one call, ``(B, G*in, H, W) -> (B, G*out, H, W)``."""

    def __init__(self, heads: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(heads * channels_out, channels_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(heads * channels_out))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (9 * channels_in)))

    def forward(self, x: Tensor) -> Tensor:
        """Zero-padded, so the grid keeps its size."""
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.heads)


class DiscriminatorHeads(nn.Module):
    """``G`` independent heads over the teacher's features. Parameters are fp32.

    Args:
        config: widths; ``blocks`` picks the tapped blocks.
        depth: blocks of the teacher.
        width: D, channels of the teacher's image tokens.
        pooled_width: P, channels of the pooled text embedding.

    Raises:
        LaddError: if ``config.blocks`` names blocks that the teacher does not have.
    """

    def __init__(self, config: DiscriminatorConfig, depth: int, width: int, pooled_width: int) -> None:
        super().__init__()
        self.taps = tuple(range(depth)) if config.blocks is None else tuple(sorted(set(config.blocks)))
        if not self.taps or self.taps[-1] >= depth:
            raise LaddError(f"discriminator.blocks={config.blocks}: the teacher has blocks 0 to {depth - 1}")
        heads, mid, out, embed = len(self.taps), config.width, config.out_width, config.cond_width
        self.project = nn.Parameter(torch.randn(heads, width, mid) / math.sqrt(width))
        self.project_bias = nn.Parameter(torch.zeros(heads, 1, mid))
        self.conv1 = GroupedConv(heads, mid, mid)
        self.norm1 = nn.GroupNorm(heads * config.groups, heads * mid)
        self.conv2 = GroupedConv(heads, mid, out)
        self.norm2 = nn.GroupNorm(heads * config.groups, heads * out)
        self.logit = nn.Parameter(torch.randn(heads, out) / math.sqrt(out))
        self.logit_bias = nn.Parameter(torch.zeros(heads))
        self.frequencies = Timesteps(_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = nn.Linear(_FREQUENCIES, embed)
        self.embed_pooled = nn.Linear(pooled_width, embed)
        self.embed = nn.Linear(embed, heads * out)

    def forward(self, features: list[Tensor], grid: tuple[int, int], t: Tensor, pooled: Tensor) -> Tensor:
        """Judge features.

        Args:
            features: one ``(B, N, D)`` per head, in the order of ``taps``.
            grid: ``(H, W)`` with H * W = N.
            t: noise levels ``(B,)`` of the latents behind the features.
            pooled: pooled text embedding ``(B, P)``.

        Returns:
            Logits ``(G, B, H, W)``, fp32.
        """
        x = self._on_grid(features, grid)
        x = F.leaky_relu(self.norm1(self.conv1(x)), _SLOPE)
        x = F.leaky_relu(self.norm2(self.conv2(x)), _SLOPE)
        x_BGKHW = x.unflatten(1, self.logit.shape)
        weight_BGK = self.logit + self._condition(t, pooled)
        logits = torch.einsum("bgkhw,bgk->gbhw", x_BGKHW, weight_BGK.to(x.dtype))
        return logits.float() + self.logit_bias.view(-1, 1, 1, 1)

    def _on_grid(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Project every head's tokens and lay them out on the grid: ``(B, G*K, H, W)``."""
        x_GBND = torch.stack([f.to(self.project.dtype) for f in features])
        if x_GBND.shape[2] != grid[0] * grid[1]:
            raise ValueError(f"{x_GBND.shape[2]} tokens do not fill a {grid[0]}x{grid[1]} grid")
        x_GMK = torch.baddbmm(self.project_bias.to(x_GBND.dtype), x_GBND.flatten(1, 2), self.project)
        x_GBHWK = x_GMK.unflatten(1, (-1, *grid))
        return x_GBHWK.permute(1, 0, 4, 2, 3).flatten(1, 2)

    def _condition(self, t: Tensor, pooled: Tensor) -> Tensor:
        """Per-sample addition to the logit weights, ``(B, G, K)``."""
        waves = self.frequencies(t.float() * TIMESTEP_SCALE)
        shared = self.embed_time(waves) + self.embed_pooled(pooled.to(waves.dtype))
        embedded = self.embed(F.silu(shared)).unflatten(1, self.logit.shape)
        return embedded / math.sqrt(self.logit.shape[1])
