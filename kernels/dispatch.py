"""Which implementation of a kernel runs: Triton where it can, else its twin in plain PyTorch.

A public function takes ``implementation`` ("auto", "triton" or "reference") and hands it on to `choose` where the
kernel is launched, so that a compiled graph holds no choice. The environment variable ``LADD_KERNELS`` replaces
"auto"; an argument that names an implementation wins over it. A name that cannot run is an error, never a silent
fallback.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from kernels.errors import KernelError, KernelUnavailable

Implementation = Literal["auto", "triton", "reference"]
Chosen = Literal["triton", "reference"]
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""What kernels compute in, and its name in tables of configurations and measurements."""
ENVIRONMENT = "LADD_KERNELS"
INTERPRETER = "TRITON_INTERPRET"
FIRST_CAPABILITY = (8, 0)
"""The oldest GPUs that the ahead-of-time gate compiles for (A100)."""


@dataclass(frozen=True)
class Choice:
    """What runs, and why in words for a log line."""

    implementation: Chosen
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation} ({self.reason})"


def choose(device: torch.device, implementation: str = "auto") -> Choice:
    """Pick the implementation for tensors on ``device``.

    Args:
        implementation: ``auto`` reads ``LADD_KERNELS``, and else takes Triton where it can run.

    Raises:
        KernelError: for a name that is none of `Implementation`.
        KernelUnavailable: if Triton is asked for and cannot run on ``device``.
    """
    wanted, source = _wanted(implementation)
    obstacle = triton_obstacle(device)
    if wanted == "triton" and obstacle:
        raise KernelUnavailable(f"{source} asks for triton, but {obstacle}: set it to auto or reference")
    if wanted == "triton":
        return Choice("triton", f"as {source} asks")
    if wanted == "reference":
        return Choice("reference", f"as {source} asks")
    if obstacle or interpreted():
        return Choice("reference", obstacle or "the interpreter runs only when asked for")
    return Choice("triton", f"{torch.cuda.get_device_name(device)} runs it")


def _wanted(implementation: str) -> tuple[str, str]:
    """The name in force and where it was set."""
    value, source = implementation, "implementation"
    if implementation == "auto" and ENVIRONMENT in os.environ:
        value, source = os.environ[ENVIRONMENT], ENVIRONMENT
    if value not in get_args(Implementation):
        raise KernelError(f"{source}={value!r} is unknown: choose one of {', '.join(get_args(Implementation))}")
    return value, f"{source}={value}"


def triton_obstacle(device: torch.device) -> str:
    """Why Triton cannot run on ``device``, or an empty string."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu" and interpreted():
        return ""
    if device.type != "cuda":
        return f"there is no Triton for device {device.type}"
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than capability {FIRST_CAPABILITY[0]}.0"
    return ""


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, which has to be set before triton is imported."""
    return os.environ.get(INTERPRETER) == "1"
