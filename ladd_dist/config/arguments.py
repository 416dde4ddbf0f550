"""Command line arguments: what they may be, how they are read, and how a command of one process ends."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from ladd_dist.config.values import MAX_COUNT, MAX_SEED, Count, Seed, expand_path
from ladd_dist.errors import EXIT_BAD_INPUT, LaddError


def run_command(command: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Run ``main`` with the command line's arguments; input that it refuses is one line and `EXIT_BAD_INPUT`."""
    try:
        main(command.parse_intermixed_args())
    except LaddError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def as_text(argument: str) -> str:
    """The argument as UTF-8, whatever the locale."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8 text") from None


def as_path(argument: str) -> Path:
    """A file or folder; a leading ``~``, which a shell leaves in ``--out=~/x``, is the home folder."""
    try:
        return Path(expand_path(as_text(argument)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {argument!a}") from None


def as_output(argument: str) -> Path:
    """A file to write: what could not be written is refused before there is anything to write."""
    path = as_path(argument)
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{argument} is a folder: name a file in it")
    folder = path.parent
    if not os.path.isdir(folder) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{argument} cannot be written: name a file in a folder that lets you")
    return path


def as_seed(argument: str) -> int:
    """A seed as the configuration has it."""
    try:
        return TypeAdapter(Seed).validate_python(int(argument))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {MAX_SEED}, not {argument}") from None


def as_count(argument: str) -> int:
    """A count, of at least one, as the configuration has it."""
    try:
        return TypeAdapter(Count).validate_python(int(argument))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to {MAX_COUNT}, not {argument}") from None
