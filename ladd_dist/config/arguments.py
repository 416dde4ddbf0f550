"""Types of command line arguments: what they may be, and how they are read."""

import argparse
import os
from pathlib import Path

from pydantic import TypeAdapter

from ladd_dist.config.values import MAX_COUNT, MAX_SEED, Count, Seed, expand_path


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
