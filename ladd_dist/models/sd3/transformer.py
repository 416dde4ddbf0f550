"""The SD3 transformer as student, teacher and discriminator backbone.

`Sd3Backbone` runs the blocks of diffusers' `SD3Transformer2DModel` itself, so that features come back from
``forward`` instead of being stashed by hooks.

Shape legend: B batch, C latent channels, H W latent size, N image tokens, D width, L text tokens.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from ladd_dist.config import Recomputation
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.flow import TIMESTEP_SCALE
from ladd_dist.errors import LaddError
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.sd3.block import fewer_operators
from ladd_dist.models.sd3.configs import load_config
from ladd_dist.models.sd3.networks import saved


class Sd3Backbone(Backbone):
    """An SD3 transformer that predicts velocity and returns the image tokens after chosen blocks.

    The time embedding is computed from fp32 times in any case: ``1000 t`` in bf16 would lose its last digits.
    """

    net: SD3Transformer2DModel

    def __init__(
        self,
        net: SD3Transformer2DModel,
        compute_dtype: torch.dtype = torch.float32,
        activation_checkpointing: Recomputation = False,
    ) -> None:
        super().__init__(fewer_operators(net), compute_dtype, activation_checkpointing)

    def compute(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        taps: tuple[int, ...] | None,
        consume: Callable[[Tensor], None] | None,
    ) -> Tensor | list[Tensor]:
        """See `Backbone.forward`."""
        net, dtype = self.net, self.compute_dtype
        size = x_t.shape[-2:]
        # Tokens come out of the convolution channel by channel. All that is added to them would be laid out alike, so
        # that every norm copied them, residual sums mixed two layouts, and heads copied their features.
        image = net.pos_embed(x_t.to(dtype)).contiguous()
        temb = net.time_text_embed(t.float() * TIMESTEP_SCALE, cond.pooled.to(dtype))
        text = net.context_embedder(cond.context.to(dtype))

        features: list[Tensor] = []
        blocks = list(net.transformer_blocks)
        for index, block in enumerate(blocks if taps is None else blocks[: taps[-1] + 1]):
            text, image = self.run_block(block, image, text, temb)
            if taps is not None and index in taps:
                (consume or features.append)(image)
        if taps is not None:
            return features
        return self._unpatchify(net.proj_out(net.norm_out(image, temb)), *size).float()

    def _unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        p, c = self.net.config.patch_size, self.net.out_channels
        h, w = height // p, width // p
        return tokens.view(-1, h, w, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(-1, c, height, width).contiguous()

    def wrap_points(self) -> list[nn.Module]:
        """The submodules that an engine shards and gathers one by one."""
        return list(self.net.transformer_blocks)

    def token_layers(self) -> list[str]:
        """Projections of attention and feed-forward layers, of image and text; not the norms' modulation."""
        blocks = self.net.transformer_blocks
        names = [name for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)]
        return [f"net.transformer_blocks.{name}" for name in names if "norm" not in name]

    def truncate(self, last_block: int) -> None:
        """See `truncate`."""
        truncate(self.net, last_block)

    def save_config(self, folder: Path) -> None:
        """By diffusers."""
        self.net.save_config(folder)

    @property
    def width(self) -> int:
        """Channels D of the image tokens."""
        return self.net.inner_dim

    @property
    def pooled_width(self) -> int:
        """Channels P of the pooled text embedding."""
        return self.net.config.pooled_projection_dim


def token_grid(config: dict, height: int, width: int, network: str = "teacher") -> tuple[int, int]:
    """Token grid ``(rows, columns)`` of a latent, given a transformer's whole config.

    Args:
        network: whose config it is, for the error.

    Raises:
        LaddError: if the latent does not divide into patches or exceeds the position table.
    """
    p, limit = config["patch_size"], config["pos_embed_max_size"]
    if height % p or width % p:
        raise LaddError(f"a latent of {height}x{width} does not divide into the {network}'s {p}x{p} patches")
    if max(height, width) // p > limit:
        raise LaddError(f"a latent of {height}x{width} exceeds the {network}'s position table of {limit}x{limit}")
    return height // p, width // p


def truncate(net: SD3Transformer2DModel, last_block: int) -> SD3Transformer2DModel:
    """Remove the blocks after ``last_block`` and the output layers, in place.

    Returns:
        ``net``, whose backbone gives features and no velocity from now on.
    """
    del net.transformer_blocks[last_block + 1 :]
    del net.norm_out, net.proj_out
    return net


def meta_transformer(folder: str | Path) -> SD3Transformer2DModel:
    """The transformer of a folder without storage: shapes and parameter counts only."""
    with torch.device("meta"):
        return make_transformer(folder)


def make_transformer(folder: str | Path) -> SD3Transformer2DModel:
    """The transformer of a folder with random weights, on whichever device is the default."""
    return SD3Transformer2DModel.from_config(load_config(folder))


def load_transformer(folder: str | Path, dtype: torch.dtype) -> SD3Transformer2DModel:
    """Load the transformer of a diffusers folder on the CPU.

    Raises:
        LaddError: if there is none, or its weights are not safetensors, cannot be read or are not its config's.
    """
    net: SD3Transformer2DModel = saved(folder, "transformer").load(torch_dtype=dtype)
    return net
