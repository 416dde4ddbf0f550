"""This program, started again in a process whose CUDA runtime is that of ``cuda.c``.

Fake tensors alone do not do: without a device PyTorch starts no backward pass on one, and neither FSDP2's streams nor
the clock's events exist. A machine that has a GPU is treated alike, so that a dry run takes none of its memory and
pretends to be any card.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from kernels import ARCHITECTURES
from ladd_dist.errors import LaddError
from ladd_dist.planning.dry_run.card import FakeCard

_FOLDER = "LADD_CARD_FOLDER"
"""In the environment of the second process: where its library lies, until it ends."""
_LEAST = min(ARCHITECTURES.values(), key=lambda limits: limits.shared)
"""Of a capability without limits in the table, these."""


def pretend(card: FakeCard) -> None:
    """Have this process a GPU in name only: start the program anew, and return there.

    Raises:
        LaddError: if the library cannot be built.
    """
    if folder := os.environ.pop(_FOLDER, None):
        atexit.register(shutil.rmtree, folder)
        del os.environ["LD_PRELOAD"]  # not for what this process starts
        return
    folder = tempfile.mkdtemp(prefix="ladd_dist_")
    try:
        library = build(Path(folder))
    except LaddError:
        shutil.rmtree(folder)
        raise
    os.execve(sys.executable, sys.orig_argv, environment(card, library) | {_FOLDER: folder})  # noqa: S606


def environment(card: FakeCard, library: Path) -> dict[str, str]:
    """This process's environment for one that has the card in name only."""
    capability = "{}{}".format(*card.capability)
    limits = ARCHITECTURES.get(int(capability), _LEAST)
    return os.environ | {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        # Programs for a card in name, which are not for one that is there.
        "TORCHINDUCTOR_CACHE_DIR": str(library.parent / "compiled"),
        "CUDA_VISIBLE_DEVICES": "0",  # it may be empty to hide all GPUs
        "DS_ACCELERATOR": "cuda",  # and this one cpu, where DeepSpeed must not look for any
        "LADD_CARD_NAME": card.name,
        "LADD_CARD_CAPABILITY": capability,
        "LADD_CARD_BYTES": str(card.gigabytes * 10**9),
        "LADD_CARD_SHARED": str(limits.shared),
        "LADD_CARD_THREADS": str(32 * limits.warps),
    }


def build(folder: Path) -> Path:
    """Compile ``cuda.c`` with the CUDA headers that triton brings along.

    Raises:
        LaddError: if there is no C compiler or no triton, or it says that something is wrong.
    """
    compiler, triton = shutil.which("cc") or shutil.which("gcc"), find_spec("triton")
    if compiler is None:
        raise LaddError("--dry-run compiles a stand-in for the CUDA runtime and finds no cc: apt-get install gcc")
    if triton is None or not triton.submodule_search_locations:
        raise LaddError("--dry-run takes CUDA's headers from triton, which is not installed: pip install triton")
    include = Path(triton.submodule_search_locations[0]) / "backends/nvidia/include"
    library, source = folder / "libcuda.so.1", Path(__file__).with_name("cuda.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    done = subprocess.run([*command, source, "-o", library], capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603
    if done.returncode:
        reason = (done.stderr.strip() or f"code {done.returncode}").splitlines()[0]
        raise LaddError(f"{source} cannot be compiled ({reason}): --dry-run needs a C compiler and triton's headers")
    return library
