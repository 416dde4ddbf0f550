"""Which attention a transformer runs: diffusers' own over SDPA, or this repository's fused kernel.

`choose_attention` decides once per network, before it is placed, and its words go to the log; `set_attention` puts
the processor in.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from kernels import (
    ATTENTION_HEAD_DIMS,
    DTYPE_NAMES,
    Choice,
    KernelUnavailable,
    choose,
    fastest,
    joint_attention,
    triton_obstacle,
)
from ladd_dist.errors import LaddError

_OURS = {"triton": "own", "triton + flash backward": "flash", "triton + cuDNN backward": "cudnn"}
"""The benchmark's names of our kernel -> whose backward pass it takes."""


@dataclass(frozen=True)
class Attention:
    """What runs, and why in words for the log."""

    fused: bool
    backward: str
    reason: str

    def __str__(self) -> str:
        name = "diffusers over SDPA" if not self.fused else "fused Triton kernel"
        library = f", backward by {self.backward}" if self.fused and self.backward != "own" else ""
        return f"{name}{library} ({self.reason})"


def choose_attention(
    setting: Literal["auto", "triton", "sdpa"],
    config: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
) -> Attention:
    """Pick the attention of a network.

    ``auto`` takes the fused kernel where it was measured to be fastest on this GPU, nearest to the network's native
    size.

    Args:
        setting: ``kernels.attention``.
        config: the diffusers transformer's.
        dtype: compute precision.
        compiled: whether the network's blocks are, which is what the kernel then has to beat.

    Raises:
        LaddError: if ``setting`` is triton and it cannot run.
    """
    measured = partial(_measured, config, device, dtype, compiled)
    try:
        choice = choose("kernels.attention", setting, _obstacle(config, device), measured)
    except KernelUnavailable as why:
        raise LaddError(f"kernels.attention=triton: {why}; set kernels.attention=auto or sdpa") from None
    return Attention(choice.implementation in _OURS, _OURS.get(choice.implementation, "own"), choice.reason)


def _obstacle(config: dict[str, Any], device: torch.device) -> str:
    """Why the fused kernel cannot run, or an empty string."""
    if (head_dim := config["attention_head_dim"]) not in ATTENTION_HEAD_DIMS:
        return f"the kernel has no head_dim of {head_dim}, only {', '.join(map(str, ATTENTION_HEAD_DIMS))}"
    if config.get("qk_norm") not in (None, "rms_norm"):
        return f"the kernel has no qk_norm of {config['qk_norm']}, only rms_norm or none"
    return triton_obstacle(device)


def _measured(config: dict[str, Any], device: torch.device, dtype: torch.dtype, compiled: bool) -> Choice:
    """The fastest by the table: a name of `_OURS`, or ``reference``."""
    gpu, precision = torch.cuda.get_device_name(device), DTYPE_NAMES[dtype]
    theirs = "diffusers compiled" if compiled else "diffusers eager"
    tokens = (config["sample_size"] // config["patch_size"]) ** 2
    where = {"op": "joint_attention", "gpu": gpu, "dtype": precision, "head_dim": config["attention_head_dim"]}
    found = fastest(where, ("image", tokens), _OURS, theirs)
    if found is None:
        return Choice("reference", f"nothing was measured on {gpu} in {precision}: run make gpu-check there")
    name, row = found
    times = ", ".join(f"{key} {row['p50_ms'][key]:.3f}" for key in (*_OURS, theirs) if key in row["p50_ms"])
    reason = f"ms at {row['image']} image tokens on {gpu}: {times}"
    return Choice(name if name in _OURS else "reference", reason)


def set_attention(net: SD3Transformer2DModel, attention: Attention) -> None:
    """Make every attention of the network run what was chosen."""
    if attention.fused:
        net.set_attn_processor(JointAttentionProcessor("triton", attention.backward))


class JointAttentionProcessor:
    """diffusers attention processor of SD3's blocks: joint, image-only (SD3.5 medium's second) and last ones.

    Parameters and state are diffusers' own; only the computation between the projections differs.

    Args:
        implementation: see `kernels.joint_attention`.
    """

    def __init__(self, implementation: str = "auto", backward: str = "own") -> None:
        self.implementation, self.backward = implementation, backward

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of image tokens ``(B, N, C)`` and, if given, text tokens ``(B, L, C)``.

        Raises:
            LaddError: for an attention mask, which SD3 never has.
        """
        if attention_mask is not None:
            raise LaddError("joint attention takes no attention_mask: set kernels.attention=sdpa")
        image = _heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v)
        norms: dict[str, Any] = {"norm_q": _weight(attn.norm_q), "norm_k": _weight(attn.norm_k)}
        text: tuple[Tensor, ...] = ()
        if encoder_hidden_states is not None:
            text = _heads(attn, encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms |= {"text_norm_q": _weight(attn.norm_added_q), "text_norm_k": _weight(attn.norm_added_k)}
        out, text_out = joint_attention(
            *image, *text, **norms, eps=attn.norm_q.eps if attn.norm_q is not None else 1e-6,
            implementation=self.implementation, backward=self.backward,
        )  # fmt: skip
        result = attn.to_out[1](attn.to_out[0](out.flatten(2)))
        if text_out is None:
            return result
        text_result = text_out.flatten(2)
        return result, text_result if attn.context_pre_only else attn.to_add_out(text_result)


def _heads(attn: Any, x: Tensor, *projections: nn.Module) -> tuple[Tensor, ...]:
    return tuple(project(x).unflatten(-1, (attn.heads, -1)) for project in projections)


def _weight(norm: Any) -> Tensor | None:
    return None if norm is None else norm.weight
