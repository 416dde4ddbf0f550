"""A run outlives its console: with a closed pipe or a dropped terminal, output is dropped and the run goes on."""

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Console(io.FileIO):
    """A file descriptor that drops what it cannot write: its reader is gone, its disk is full, or it is not ready."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def outlive() -> None:
    """Let stdout and stderr drop what nobody reads, for the rest of the process's life.

    Streams that a program has put in their place are left alone.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None:
            descriptor = _to_nothing(descriptor)
        else:
            stream.flush()
        encoding, errors, lines = "utf-8", "backslashreplace", True
        if stream is not None:
            encoding, errors, lines = stream.encoding, stream.errors or errors, stream.line_buffering
        console = io.BufferedWriter(_Console(descriptor, "w", closefd=False))
        wrapper = io.TextIOWrapper(console, encoding, errors, line_buffering=lines)
        setattr(sys, name, wrapper)
        setattr(sys, f"__{name}__", wrapper)


def _to_nothing(descriptor: int) -> int:
    """Open a descriptor that was closed at the start: the next file, a checkpoint say, would get it, and all that is
    printed. Returns another one if a file has it already."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError):
        os.fstat(descriptor)
        return null
    os.dup2(null, descriptor)
    return descriptor
