"""Errors for damaged files: one line that names the file and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from ladd_dist.errors import LaddError

_MAKERS = "launchers/synthesize.py again (encode.py or pairs.py for given pictures or pairs)"
AGAIN = f"run {_MAKERS}, which keeps finished parts, or copy the dataset again"
"""The remedy for a damaged manifest or index of a whole stream: both are made from the parts."""


def redraw(part: Path) -> str:
    """The remedy for a damaged part."""
    return f"delete {part} and run {_MAKERS}, or copy the dataset again"


@contextmanager
def named(file: Path, remedy: str) -> Iterator[None]:
    """Context in which a file is read and checked.

    Raises:
        LaddError: in place of an OSError or a ValueError (pydantic's among them), naming the file and the remedy.
    """
    try:
        yield
    except FileNotFoundError:
        raise LaddError(f"{file} is missing: {remedy}") from None
    except OSError as error:
        raise LaddError(f"{file} cannot be read ({error.strerror}): {remedy}") from None
    except ValueError as error:
        raise LaddError(f"{file} is damaged ({_first_line(error)}): {remedy}") from None


def _first_line(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), message]))
