"""Kernels of ladd_dist, and all that others use of them. Importing this package loads neither triton nor torch.

Names resolve on first use: ``from kernels import joint_attention`` loads what that function needs.

transformers and diffusers probe for a Hugging Face package of the same name, so this one must stay harmless to
import: no eager imports and no version attribute.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.architectures import ARCHITECTURES as ARCHITECTURES
    from kernels.attention.backends import SDPA_BACKENDS as SDPA_BACKENDS
    from kernels.attention.backends import sdpa_by as sdpa_by
    from kernels.attention.backends import sdpa_obstacle as sdpa_obstacle
    from kernels.attention.configs import ATTENTION_HEAD_DIMS as ATTENTION_HEAD_DIMS
    from kernels.attention.op import JOINT_ATTENTION as JOINT_ATTENTION
    from kernels.attention.op import joint_attention as joint_attention
    from kernels.dispatch import DTYPE_NAMES as DTYPE_NAMES
    from kernels.dispatch import Choice as Choice
    from kernels.dispatch import choose as choose
    from kernels.dispatch import triton_obstacle as triton_obstacle
    from kernels.errors import KernelError as KernelError
    from kernels.errors import KernelUnavailable as KernelUnavailable
    from kernels.heads.op import grouped_heads as grouped_heads
    from kernels.heads.projection import project_tokens as project_tokens
    from kernels.heads.reference import grouped_heads_reference as grouped_heads_reference
    from kernels.heads.slope import grouped_heads_slope as grouped_heads_slope
    from kernels.heads.weights import HEAD_WIDTH_STEP as HEAD_WIDTH_STEP
    from kernels.heads.weights import HeadWeights as HeadWeights
    from kernels.hinge.op import hinge_per_head as hinge_per_head
    from kernels.hinge.reference import HingePerHead as HingePerHead
    from kernels.hinge.reference import hinge_reference as hinge_reference
    from kernels.measured import fastest as fastest

_EXPORTS: dict[str, str] = {
    "ARCHITECTURES": "architectures",
    "SDPA_BACKENDS": "attention.backends",
    "sdpa_by": "attention.backends",
    "sdpa_obstacle": "attention.backends",
    "ATTENTION_HEAD_DIMS": "attention.configs",
    "JOINT_ATTENTION": "attention.op",
    "joint_attention": "attention.op",
    "Choice": "dispatch",
    "choose": "dispatch",
    "DTYPE_NAMES": "dispatch",
    "triton_obstacle": "dispatch",
    "KernelError": "errors",
    "KernelUnavailable": "errors",
    "grouped_heads": "heads.op",
    "project_tokens": "heads.projection",
    "grouped_heads_reference": "heads.reference",
    "grouped_heads_slope": "heads.slope",
    "HEAD_WIDTH_STEP": "heads.weights",
    "HeadWeights": "heads.weights",
    "hinge_per_head": "hinge.op",
    "HingePerHead": "hinge.reference",
    "hinge_reference": "hinge.reference",
    "fastest": "measured",
}
"""Public name -> submodule that defines it."""


if not TYPE_CHECKING:  # mypy would take any name for exported

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'kernels' has no attribute '{name}'")
        return getattr(import_module(f"kernels.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
