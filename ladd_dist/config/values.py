"""What a path and a seed may be, in configuration files and on the command line alike."""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_SEED = 2**63 - 1
"""Noise is drawn from keys of signed 64-bit integers (`noise.generator`); torch and Streaming take larger ones."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def expand_path(text: str) -> str:
    """A path with its leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ValueError: if no file can have this name: it is empty, of an unknown user, or cannot be encoded.
    """
    path = os.path.expanduser(text)
    if not path:
        raise ValueError("must be a path (. is the current folder)")
    if path.startswith("~"):
        raise ValueError("must be a path, and ~ a user's who has a home folder (./~ is a name that begins with ~)")
    try:
        path.encode()
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("must be a path that this locale can encode (start with PYTHONUTF8=1)") from None
    if "\0" in path:
        raise ValueError("must be a path, without NUL")
    return path


def expand_judge(name: str) -> str:
    """``clip:FOLDER`` with the folder as of `expand_path`; any other name as it is."""
    kind, separator, folder = name.partition(":")
    return f"{kind}:{expand_path(folder)}" if separator and folder else name


PathName = Annotated[str, AfterValidator(expand_path)]
JudgeName = Annotated[str, AfterValidator(expand_judge)]
