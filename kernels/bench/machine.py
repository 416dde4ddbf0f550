"""The machine's own ceilings and versions, which every row carries."""

import subprocess
from datetime import UTC, datetime
from functools import cache
from typing import Any

import torch
import triton
from triton.testing import do_bench

_MATMUL = 8192
_COPY_BYTES = 4 << 30
QUANTILES = [0.2, 0.5, 0.8]


def matmul_tflops() -> float:
    """bf16 matmul rate in TFLOP/s on random data."""
    a, b = (torch.randn(_MATMUL, _MATMUL, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    milliseconds = do_bench(lambda: a @ b, warmup=100, rep=500, quantiles=QUANTILES)[1]
    return 2 * _MATMUL**3 / milliseconds / 1e9


def copy_gbps() -> float:
    """Device copy rate in GB/s, bytes read plus bytes written."""
    source = torch.randn(_COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    milliseconds = do_bench(lambda: target.copy_(source), warmup=100, rep=500, quantiles=QUANTILES)[1]
    return 2 * _COPY_BYTES / milliseconds / 1e6


@cache
def facts() -> dict[str, Any]:
    """GPU, driver, versions, commit, date and ceilings; measured once per process."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "matmul_tflops": matmul_tflops(),
        "copy_gbps": copy_gbps(),
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
