"""A process that measures iterations one after the other, so that imports and compiled kernels serve all of them."""

import gc
import multiprocessing
import sys
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from ladd_dist import log
from ladd_dist.config import load
from ladd_dist.distributed import world as distributed
from ladd_dist.errors import LaddError
from ladd_dist.measuring.iteration import measure_iteration

Row = dict[str, Any]
CUT_SHORT = "out of time: the same command goes on here"


class OneAfterAnother:
    """Measures variants of a configuration in a process of their own, and in a new one after one that failed.

    A device that met an error, and memory that ran out, leave nothing for others in the same process.
    """

    def __init__(self, config_file: Path, rounds: int) -> None:
        self._config_file, self._rounds = config_file, rounds
        self._process: SpawnProcess | None = None
        self._pipe: Connection

    def measure(self, overrides: list[str], seconds: float) -> Row:
        """An `Iteration` as a dictionary, or one line of what went wrong as ``error``.

        Args:
            seconds: after which it is given up, with `CUT_SHORT`.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send(overrides)
            if not self._pipe.poll(seconds):
                self.end()
                return {"error": CUT_SHORT}
            row, goes_on = self._pipe.recv()
        except (EOFError, OSError):
            row, goes_on = {"error": "its process was ended, perhaps for the host's lack of memory"}, False
        if not goes_on:
            self.end()
        return dict(row)

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._config_file, self._rounds))
        self._process.start()
        theirs.close()  # or its end would not show


def _serve(pipe: Connection, config_file: Path, rounds: int) -> None:
    world = None
    while (overrides := _next(pipe)) is not None:
        goes_on = True
        try:
            config = load(config_file, overrides)
            if world is None:
                world = distributed.start(config.device)
                log.setup(world)
            row = asdict(measure_iteration(config, world, rounds))
        except LaddError as error:
            row = {"error": str(error)}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)  # all of it: a table has room for one line
            row, goes_on = {"error": (str(error) or type(error).__name__).strip().splitlines()[0][:300]}, False
        pipe.send((row, goes_on))
        gc.collect()
        torch.cuda.empty_cache()


def _next(pipe: Connection) -> list[str] | None:
    try:
        overrides: list[str] = pipe.recv()
    except EOFError:
        return None  # nobody asks any more
    return overrides
