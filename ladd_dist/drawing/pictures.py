"""Pictures as files: single PNGs and sheets with one row per aspect ratio."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import pad

from ladd_dist.errors import LaddError

_GAP, _GREY = 2, 0.5


def read_picture(path: Path) -> Tensor:
    """A picture file ``(1, 3, H, W)`` in [0, 1], upright, without its transparency.

    Raises:
        LaddError: if it cannot be read as one.
    """
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow's formats raise
        raise LaddError(f"picture {path} cannot be read ({' '.join(str(error).split())}): give another one") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def save_png(picture: Tensor, path: Path, settings: Mapping[str, str] | None = None) -> Path:
    """Write one picture ``(3, H, W)`` in [0, 1].

    Args:
        settings: what it was drawn with, for the file's text chunks.
    """
    chunks = PngInfo()
    for key, value in (settings or {}).items():
        chunks.add_text(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, pnginfo=chunks)
    return path


def sheet(rows: list[list[Tensor]]) -> Tensor:
    """One picture of several rows of pictures ``(3, H, W)`` on grey; sizes may differ from row to row."""
    strips = [_strip(row) for row in rows]
    width = max(strip.shape[2] for strip in strips)
    return torch.cat([pad(strip, (0, width - strip.shape[2]), value=_GREY) for strip in strips], dim=1)


def _strip(row: list[Tensor]) -> Tensor:
    framed = [pad(picture.cpu(), (_GAP, 0, _GAP, _GAP), value=_GREY) for picture in row]
    return pad(torch.cat(framed, dim=2), (0, _GAP), value=_GREY)
