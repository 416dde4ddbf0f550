"""Processes for tests: launchers as subprocesses, and ranks that start fast from a warm server process."""

import atexit
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ladd_dist.measuring.compared import free_port

ROOT = Path(__file__).parent.parent
_WARM = ["ladd_dist.training.trainer", "ladd_dist.drawing.synthesis", "ladd_dist.models.sd3.transformer"]
_WARM += ["deepspeed.runtime.zero.muon.muon_optimizer", "hypothesis", "peft", "pytest"]
"""What every rank would spend seconds on; the optimizer, which brings a compiler, is what DeepSpeed imports late."""
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment, CPU and threads included, without traces of another process group."""
    group = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in group}
    return kept | (env or {})


def launch(
    args: list[str], env: dict[str, str] | None = None, timeout: float = 900, ranks: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run ``launchers/NAME.py ARGS...`` from the repository root and wait for it.

    Args:
        args: the launcher's file name and its arguments.
        timeout: seconds after which the whole process group is killed and the test fails.
        ranks: start that many processes with torchrun; 0 starts plain Python.
    """
    starter = [*_TORCHRUN, "--standalone", f"--nproc-per-node={ranks}"] if ranks else [sys.executable]
    command = [*starter, f"launchers/{args[0]}", *args[1:]]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{command} hung for {timeout} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, _lines(out), _lines(err))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def start_ranks(
    function: Callable[..., Any],
    *args: Any,
    size: int = 1,
    env: dict[str, str] | None = None,
    namespaces: Sequence[Path | None] = (),
) -> list[BaseProcess]:
    """Start ``function(world, *args)`` on ``size`` ranks of one gloo group, or alone for ``size=1``.

    Function and arguments must be picklable: the ranks come from a server process that has imported the
    package once, which makes them start in a fraction of a launcher's time. ``namespaces`` are network namespaces to
    put the ranks into, one each.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_WARM)
    with patch.dict(os.environ, DS_ACCELERATOR="cpu"):  # as `engines/zero3.py` says before it imports DeepSpeed
        forkserver.ensure_running()
    port = free_port()
    places = namespaces or [None] * size
    processes = [
        context.Process(target=_rank, args=(rank, size, port, env or {}, place, function, args))
        for rank, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess], timeout: float = 600) -> list[int]:
    """Wait for ranks and return their exit codes; if they hang, have them say where, kill them and fail."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGABRT)  # faulthandler's, see `_rank`
        process.join(10)
        process.kill()
    assert not hung, f"{len(hung)} of {len(processes)} ranks hung for {timeout} s"
    return [process.exitcode or 0 for process in processes]


def run_ranks(function: Callable[..., Any], *args: Any, size: int = 1, timeout: float = 600) -> list[Any]:
    """Run ``function(world, *args)`` on every rank and return the ranks' picklable results, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start_ranks(_to_file, function, folder, *args, size=size)
        codes = join(processes, timeout)
        assert codes == [0] * size, f"ranks ended with {codes}, their traces are above"
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(size)]


def _to_file(world: Any, function: Callable[..., Any], folder: str, *args: Any) -> None:
    Path(folder, str(world.rank)).write_bytes(pickle.dumps(function(world, *args)))


def _enter(namespace: Path) -> None:
    """Python 3.12 has it in `os`."""
    with namespace.open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def _rank(
    rank: int,
    size: int,
    port: int,
    env: dict[str, str],
    namespace: Path | None,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    os.chdir(ROOT)
    faulthandler.enable()
    if namespace is not None:
        _enter(namespace)
    clean = environment()
    os.environ.clear()
    os.environ.update(clean)
    if size > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    os.environ |= env
    import torch

    from ladd_dist import log
    from ladd_dist.distributed import world as distributed

    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as in a launcher
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    world = distributed.start("cpu")
    log.setup(world)
    try:
        function(world, *args)
    except BaseException:
        traceback.print_exc()
        raise
    distributed.stop()
    # As an interpreter ends, and multiprocessing does not: first threads, then exit functions. Streaming's free the
    # shared memory that its threads read; one that is still reading would find a shard that is never there.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
