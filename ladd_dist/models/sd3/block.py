"""SD3's block, with modulation and gates as one operator each.

diffusers' own computes ``norm(x) (1 + scale) + shift`` and ``x + gate y`` by two operators that each read and write
all tokens. Parameters, their names and the arithmetic are diffusers'; in 16 bits a result is rounded once, not twice.
"""

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn


class Sd3Block(JointTransformerBlock):
    """`JointTransformerBlock` with fewer operators: joint attention, in some blocks image-only attention, MLPs."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Text and image tokens after the block, text first.

        Args:
            hidden_states: image tokens ``(B, N, D)``.
            encoder_hidden_states: text tokens ``(B, L, D)``.
            temb: what modulates them, ``(B, D)``.
            joint_attention_kwargs: nothing; diffusers' transformer names it.

        Returns:
            Text tokens, None after the last block, and image tokens.
        """
        image, text = hidden_states, encoder_hidden_states
        shift, scale, gate, *more = _modulation(self.norm1, temb, 9 if self.use_dual_attention else 6)
        if self.context_pre_only:
            text_scale, text_shift = _modulation(self.norm1_context, temb, 2)
        else:
            text_shift, text_scale, text_gate, *text_more = _modulation(self.norm1_context, temb, 6)
        normed = self.norm1.norm(image)
        attended, text_attended = self.attn(
            hidden_states=_modulated(normed, shift, scale),
            encoder_hidden_states=_modulated(self.norm1_context.norm(text), text_shift, text_scale),
        )
        image = torch.addcmul(image, gate, attended)
        if self.use_dual_attention:
            shift, scale, gate = more[3:]
            image = torch.addcmul(image, gate, self.attn2(hidden_states=_modulated(normed, shift, scale)))
        image = _mlp(image, self.norm2, self.ff, *more[:3])
        if self.context_pre_only:
            return None, image
        text = torch.addcmul(text, text_gate, text_attended)
        return _mlp(text, self.norm2_context, self.ff_context, *text_more), image


def _modulation(norm: nn.Module, temb: Tensor, count: int) -> tuple[Tensor, ...]:
    """So many vectors ``(B, 1, D)``, in diffusers' order."""
    return norm.linear(norm.silu(temb)).unsqueeze(1).chunk(count, dim=2)  # type: ignore[operator]


def _modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, normed, 1 + scale)


def _mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate, mlp(_modulated(norm(x), shift, scale)))


def fewer_operators(net: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """Make its blocks `Sd3Block`, in place."""
    for block in net.transformer_blocks:
        block.__class__ = Sd3Block
    return net
