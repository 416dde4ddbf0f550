"""Kernels of ladd_dist. Importing this package loads neither triton nor torch: names resolve on first use.

transformers and diffusers probe for a Hugging Face package of the same name, so this one must stay harmless to
import: no eager imports and no version attribute.
"""

from importlib import import_module
from typing import Any

_EXPORTS: dict[str, str] = {
    "fastest": "measured",
    "grouped_heads": "heads.op",
    "grouped_heads_reference": "heads.reference",
    "HeadWeights": "heads.weights",
    "hinge_per_head": "hinge.op",
    "HingePerHead": "hinge.reference",
    "joint_attention": "attention.op",
    "project_tokens": "heads.projection",
    "triton_obstacle": "dispatch",
}
"""Public name -> submodule that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'kernels' has no attribute '{name}'")
    return getattr(import_module(f"kernels.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
