"""Pictures as files: single PNGs and sheets with one row per aspect ratio."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

_GAP = 2


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
