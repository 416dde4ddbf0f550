"""Which attention a transformer runs: this repository's fused kernel, or diffusers' own over one of PyTorch's.

`choose_attention` decides once per network, before it is placed, and its words go to the log; `set_attention` puts
the processor in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn

from kernels import (
    ATTENTION_HEAD_DIMS,
    DTYPE_NAMES,
    SDPA_BACKENDS,
    fastest,
    joint_attention,
    sdpa_by,
    sdpa_obstacle,
    triton_obstacle,
)
from ladd_dist.errors import LaddError

_OURS = {"triton": "own", "triton + flash backward": "flash", "triton + cuDNN backward": "cudnn"}
"""The benchmark's names of our kernel -> whose backward pass it takes."""
_THEIRS = {"SDPA flash": "flash", "SDPA cuDNN": "cudnn", "SDPA efficient": "efficient"}
"""The benchmark's names of PyTorch's attention -> ours."""
_UNMEASURED = ("flash", "efficient")
"""What a GPU runs where nothing was measured: the first that can. Flash attention is PyTorch's oldest for training in
16 bits; the other one runs fp32 and any head_dim."""


@dataclass(frozen=True)
class Attention:
    """What runs, and why in words for the log.

    Args:
        implementation: ``triton``, one of `SDPA_BACKENDS`, or ``diffusers`` for its own as it is.
        backward: of ``triton``, whose backward pass.
    """

    implementation: str
    backward: str
    reason: str

    def __str__(self) -> str:
        named = f"diffusers over PyTorch's {self.implementation} attention"
        name = {"triton": "fused Triton kernel", "diffusers": "diffusers over SDPA"}.get(self.implementation, named)
        library = f", backward by {self.backward}" if self.backward != "own" else ""
        return f"{name}{library} ({self.reason})"


def choose_attention(
    setting: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype, compiled: bool
) -> Attention:
    """Pick the attention of a network.

    ``auto`` takes what was measured to be fastest on this GPU, nearest to the network's native size.

    Args:
        setting: ``kernels.attention``.
        config: the diffusers transformer's.
        dtype: compute precision.
        compiled: whether the network's blocks are.

    Raises:
        LaddError: if what ``setting`` names cannot run.
    """
    obstacles = {"triton": _fused_obstacle(config, device)}
    if setting == "auto" and device.type != "cuda":
        return Attention("diffusers", "own", obstacles["triton"] or "the interpreter runs only when asked for")
    head_dim = config["attention_head_dim"]
    obstacles |= {name: sdpa_obstacle(name, device, dtype, head_dim) for name in SDPA_BACKENDS}
    if setting == "auto":
        runs = [name for name, obstacle in obstacles.items() if not obstacle]
        gpu = torch.cuda.get_device_name(device)
        return _measured(config, gpu, dtype, compiled, runs) or _unmeasured(gpu, dtype, obstacles)
    if obstacles[setting]:
        raise LaddError(f"kernels.attention={setting}: {obstacles[setting]}; set kernels.attention=auto")
    return Attention(setting, "own", f"as kernels.attention={setting} asks")


def expects_fused(setting: str, config: dict[str, Any], gpu: str, dtype: torch.dtype, compiled: bool) -> bool:
    """Whether a GPU that is not there would run the fused kernel, as far as its name says.

    Args:
        gpu: as PyTorch calls it.
    """
    if setting != "auto":
        return setting == "triton"
    runs = [*SDPA_BACKENDS, *([] if _shape_obstacle(config) else ["triton"])]
    found = _measured(config, gpu, dtype, compiled, runs)
    return found is not None and found.implementation == "triton"


def _fused_obstacle(config: dict[str, Any], device: torch.device) -> str:
    """Why the fused kernel cannot run, or an empty string."""
    return _shape_obstacle(config) or triton_obstacle(device)


def _shape_obstacle(config: dict[str, Any]) -> str:
    """Why there is no fused kernel for a network, or an empty string."""
    if (head_dim := config["attention_head_dim"]) not in ATTENTION_HEAD_DIMS:
        return f"the kernel has no head_dim of {head_dim}, only {', '.join(map(str, ATTENTION_HEAD_DIMS))}"
    if config.get("qk_norm") not in (None, "rms_norm"):
        return f"the kernel has no qk_norm of {config['qk_norm']}, only rms_norm or none"
    return ""


def _measured(
    config: dict[str, Any], gpu: str, dtype: torch.dtype, compiled: bool, runs: list[str]
) -> Attention | None:
    """The fastest by the table, of those that run; None where nothing was measured, or nothing that has a name."""
    way = "compiled" if compiled else "eager"
    tokens = (config["sample_size"] // config["patch_size"]) ** 2
    where = {
        "op": "joint_attention", "gpu": gpu, "dtype": DTYPE_NAMES[dtype], "head_dim": config["attention_head_dim"],
    }  # fmt: skip
    ours = {name: ("triton", backward) for name, backward in _OURS.items() if "triton" in runs}
    theirs = {f"{way} around {name}": (backend, "own") for name, backend in _THEIRS.items() if backend in runs}
    named = ours | theirs
    # Older rows have of diffusers only what PyTorch chose then: enough to know that ours is faster.
    for others in ([*theirs], [f"diffusers {way}"]):
        if found := fastest(where, ("image", tokens), ours, others):
            name, row = found
            times = ", ".join(f"{key} {row['p50_ms'][key]:.3f}" for key in (*ours, *others) if key in row["p50_ms"])
            reason = f"ms at {row['image']} image tokens on {gpu}: {times}"
            return Attention(*named[name], reason) if name in named else None
    return None


def _unmeasured(gpu: str, dtype: torch.dtype, obstacles: Mapping[str, str]) -> Attention:
    for name in _UNMEASURED:
        if not obstacles[name]:
            precision = DTYPE_NAMES[dtype]
            reason = f"no faster one was measured on {gpu} in {precision}: run make gpu-check there, or name one"
            if obstacles["triton"]:
                reason += f"; ours cannot run: {obstacles['triton']}"
            return Attention(name, "own", reason)
    raise LaddError(f"kernels.attention=auto: {obstacles[_UNMEASURED[-1]]}; choose another train.precision")


def set_attention(net: SD3Transformer2DModel, attention: Attention) -> None:
    """Make every attention of the network run what was chosen."""
    if attention.implementation == "triton":
        net.set_attn_processor(JointAttentionProcessor("triton", attention.backward))
    elif attention.implementation in SDPA_BACKENDS:
        net.set_attn_processor(NamedAttentionProcessor(attention.implementation))


class NamedAttentionProcessor(JointAttnProcessor2_0):
    """diffusers' own attention processor of SD3's blocks over one of `SDPA_BACKENDS`."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As diffusers'."""
        with sdpa_by(self.backend):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


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
            raise LaddError("joint attention takes no attention_mask: set kernels.attention=efficient")
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
    shape = (*x.shape[:2], attn.heads, -1)
    return tuple(project(x).view(shape) for project in projections)


def _weight(norm: Any) -> Tensor | None:
    return None if norm is None else norm.weight
