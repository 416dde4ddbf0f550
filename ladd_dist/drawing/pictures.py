"""Pictures as files: read into a bucket, single PNGs, and sheets with one row per aspect ratio."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.utils import make_grid

from ladd_dist.data.buckets import Bucket
from ladd_dist.errors import LaddError

_GAP = 2


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
    fitted = ImageOps.fit(picture, size, method=Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).contiguous()


def save_png(picture: Tensor, path: Path) -> Path:
    """Write one picture ``(3, H, W)`` in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def sheet(rows: list[list[Tensor]]) -> Tensor:
    """One picture of several rows of pictures ``(3, H, W)`` on grey; sizes may differ from row to row."""
    grids = [make_grid(torch.stack(row).cpu(), nrow=len(row), padding=_GAP, pad_value=0.5) for row in rows]
    width = max(grid.shape[2] for grid in grids)
    padded = [torch.nn.functional.pad(grid, (0, width - grid.shape[2]), value=0.5) for grid in grids]
    return torch.cat(padded, dim=1)
