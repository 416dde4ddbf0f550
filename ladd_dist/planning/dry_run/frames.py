"""Which line of this project had something done."""

import sys
from pathlib import Path
from types import FrameType

_PLANNING = Path(__file__).parent.parent
_PROJECT = _PLANNING.parent.parent
_ROOMS = (str(_PROJECT / "ladd_dist"), str(_PROJECT / "kernels"))


def caller() -> str:
    """``FILE:LINE`` of the project's innermost line, `planning` aside; in a thread of autograd there may be none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOMS) and not file.startswith(str(_PLANNING)):
            return f"{Path(file).relative_to(_PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a library's code in the backward pass"
