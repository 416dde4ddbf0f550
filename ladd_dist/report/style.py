"""The look of pages and figures: colours, templates, pictures within a page."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SLATE, ORANGE, GREY = "#4a6785", "#c2410c", "#7b8691"
FIGURE: Any = {"font.size": 9.5, "axes.edgecolor": GREY, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
"""matplotlib's parameters."""
_TEMPLATES = Path(__file__).parent / "templates"


def environment(*folders: Path) -> Environment:
    """Templates of these folders and of this room; what is put into them is text unless it says that it is markup."""
    return Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=True,  # prompts are text of users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(kind: str, data: bytes) -> str:
    """A picture file's content as an address; ``kind`` is such as ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def source_hash(source: str) -> str:
    """How a content security policy names a script or style that stands in its page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
