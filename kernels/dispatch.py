"""Which implementation of a kernel runs: Triton, or the reference in plain PyTorch.

`choose` decides for a whole network by a setting, by what stands in the way, and by a measurement. `resolve` decides
for one call: a public function takes ``implementation`` ("auto", "triton" or "reference") and hands it on to where
the kernel is launched, so that a compiled graph holds no choice. The environment variable ``LADD_KERNELS`` replaces
"auto"; an argument that names an implementation wins over it. A name that cannot run is an error, never a silent
fallback.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from kernels.architectures import ARCHITECTURES, named
from kernels.errors import KernelError, KernelUnavailable

Implementation = Literal["auto", "triton", "reference"]
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Dtypes that the kernels compute in -> their names in tables of configurations and measurements."""
ENVIRONMENT = "LADD_KERNELS"
INTERPRETER = "TRITON_INTERPRET"


@dataclass(frozen=True)
class Choice:
    """What runs, ``reference``, ``triton`` or a variant of it, and why in words for a log line."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation} ({self.reason})"


def choose(key: str, value: str, obstacle: str, measured: Callable[[], Choice]) -> Choice:
    """Decide by a setting; where that is "auto", by what can run; where both can, by a measurement.

    Args:
        key: name of the setting, for the reason.
        value: "auto", "triton", or any other name for the reference.
        obstacle: why Triton cannot run, or an empty string.
        measured: the choice where the setting is "auto" and nothing stands in the way.

    Raises:
        KernelUnavailable: if Triton is asked for and cannot run. Says ``obstacle`` alone: the caller adds the remedy.
    """
    if value == "auto":
        return Choice("reference", obstacle) if obstacle else measured()
    if value == "triton" and obstacle:
        raise KernelUnavailable(obstacle)
    return Choice("triton" if value == "triton" else "reference", f"as {key}={value} asks")


def resolve(device: torch.device, implementation: str = "auto") -> Choice:
    """Pick the implementation of one call, for tensors on ``device``.

    Args:
        implementation: ``auto`` reads ``LADD_KERNELS``, and else takes Triton where it can run.

    Raises:
        KernelError: for a name that is none of `Implementation`.
        KernelUnavailable: if Triton is asked for and cannot run on ``device``.
    """
    key, value = _asked(implementation)
    obstacle = triton_obstacle(device)
    if value == "auto" and interpreted():
        obstacle = obstacle or "the interpreter runs only when asked for"
    try:
        return choose(key, value, obstacle, lambda: Choice("triton", f"{torch.cuda.get_device_name(device)} runs it"))
    except KernelUnavailable:
        message = f"{key}={value} asks for triton, but {obstacle}: set it to auto or reference"
        raise KernelUnavailable(message) from None


def _asked(implementation: str) -> tuple[str, str]:
    """Where the name in force was set, and that name."""
    key, value = "implementation", implementation
    if implementation == "auto" and ENVIRONMENT in os.environ:
        key, value = ENVIRONMENT, os.environ[ENVIRONMENT]
    if value not in get_args(Implementation):
        raise KernelError(f"{key}={value!r} is unknown: choose one of {', '.join(get_args(Implementation))}")
    return key, value


def triton_obstacle(device: torch.device) -> str:
    """Why Triton cannot run on ``device``, or an empty string."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu" and interpreted():
        return ""
    if device.type != "cuda":
        return f"there is no Triton for device {device.type}"
    if (arch := architecture(device)) not in ARCHITECTURES:
        checked = ", ".join(map(named, ARCHITECTURES))
        return f"{torch.cuda.get_device_name(device)} has capability {named(arch)}, the kernels are for {checked}"
    return ""


def architecture(device: torch.device) -> int:
    """Ten times a GPU's compute capability, such as 90; the interpreter uses the oldest one's configurations."""
    if device.type != "cuda":
        return min(ARCHITECTURES)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def cdiv(length: int, block: int) -> int:
    """How many blocks cover a length. `triton.cdiv` says the same, but is made for kernels, and slow outside."""
    return -(-length // block)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the current one while kernels are launched: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, which has to be set before triton is imported."""
    return os.environ.get(INTERPRETER) == "1"
