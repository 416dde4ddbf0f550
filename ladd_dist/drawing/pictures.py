"""Pictures as files: read into a bucket, single PNGs, and sheets with one row per aspect ratio."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import pad

from ladd_dist.data.buckets import Bucket
from ladd_dist.errors import LaddError

_GAP, _GREY = 2, 0.5


def open_picture(source: Path | bytes) -> Image.Image:
    """Read a picture whole, from a file or from a file's content, as RGB, turned as its EXIF says; alpha is dropped.

    Raises:
        LaddError: if that is not possible.
    """
    what = "a picture" if isinstance(source, bytes) else f"picture {source}"
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"its mode is {picture.mode}, not 8 bits for each colour")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise LaddError(f"{what} is missing") from None
    except Exception as error:  # Pillow's formats raise whatever they meet
        raise LaddError(f"{what} cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None


def fit_picture(picture: Image.Image, bucket: Bucket) -> Tensor:
    """A picture in a bucket's size, ``(3, H, W)`` fp32 in [0, 1]: cut to its aspect ratio at the centre, resized."""
    size = bucket.width, bucket.height
    return pixels_of(ImageOps.fit(picture, size, method=Image.Resampling.LANCZOS))


def pixels_of(picture: Image.Image) -> Tensor:
    """An RGB picture ``(3, H, W)`` fp32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).contiguous()


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
