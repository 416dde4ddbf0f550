"""Real handwritten digits: scikit-learn's 8x8 scans, split once, and drawn onto canvases.

The scans (UCI "Optical Recognition of Handwritten Digits", test part, 1,797 of them) ship inside
scikit-learn, so nothing is downloaded. Two thirds belong to the teacher; the judge alone sees the rest.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ladd_dist.errors import LaddError

CELL = 32
"""Side of one digit's cell in pixels."""

LAYOUTS: dict[str, tuple[int, int]] = {"32x32": (1, 1), "32x64": (1, 2), "64x32": (2, 1)}
"""Bucket ``"{height}x{width}"`` in pixels -> (rows, columns) of cells."""

SPLIT_SEED = 20240318
JUDGE_SHARE = 1 / 3


@dataclass(frozen=True)
class Scans:
    """Some of the scans: ``images`` float32 (N, 8, 8) in [0, 1], ``labels`` int64 (N,), ``indices`` int64 (N,)
    into ``load_digits()``."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def _split_indices() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels = load_digits().target
    teacher, judge = train_test_split(
        np.arange(len(labels)), test_size=JUDGE_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return np.sort(teacher), np.sort(judge)


def load_part(part: str) -> Scans:
    """The ``"teacher"`` part (1,198 scans) or the ``"judge"`` part (599 scans), always the same ones.

    Raises:
        LaddError: if ``part`` is neither.
    """
    if part not in ("teacher", "judge"):
        raise LaddError(f"unknown part of the scans {part!r}: choose 'teacher' or 'judge'")
    teacher, judge = _split_indices()
    chosen = teacher if part == "teacher" else judge
    digits = load_digits()
    return Scans(
        images=torch.from_numpy(digits.images[chosen] / 16.0).float(),
        labels=torch.from_numpy(digits.target[chosen]).long(),
        indices=torch.from_numpy(chosen).long(),
    )


def layout_cells(layout: str) -> tuple[int, int]:
    """(rows, columns) of cells of a bucket.

    Raises:
        LaddError: if there is no such bucket.
    """
    if layout not in LAYOUTS:
        raise LaddError(f"unknown bucket {layout!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def render(digit_images: Tensor, layout: str) -> Tensor:
    """Draw scans as white ink on black, one per cell, row by row.

    Args:
        digit_images: float (B, cells, 8, 8) in [0, 1].
        layout: a bucket of ``LAYOUTS``.

    Returns:
        Canvases float32 (B, 3, H, W) in [0, 1].

    Raises:
        LaddError: for an unknown bucket or a wrong number of scans per canvas.
    """
    rows, columns = layout_cells(layout)
    if digit_images.ndim != 4 or digit_images.shape[1:] != (rows * columns, 8, 8):
        raise LaddError(
            f"bucket {layout} takes scans of shape (B, {rows * columns}, 8, 8), not {tuple(digit_images.shape)}"
        )
    # Each cell is scaled on its own: ink of one digit must not bleed over the seam into the next.
    cells = F.interpolate(digit_images.float().flatten(0, 1)[:, None], (CELL, CELL), mode="bicubic")
    grid = cells.clamp(0, 1).view(-1, rows, columns, CELL, CELL)
    canvas = grid.permute(0, 1, 3, 2, 4).reshape(-1, 1, rows * CELL, columns * CELL)
    return canvas.expand(-1, 3, -1, -1).contiguous()


def cut_cells(images: Tensor) -> Tensor:
    """Cut canvases (B, 3, H, W) into cells (B, cells, 3, 32, 32), row by row: the inverse of the layout.

    Raises:
        LaddError: if the height or width is not a positive multiple of 32.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise LaddError(f"images must have shape (B, 3, H, W), not {tuple(images.shape)}")
    height, width = images.shape[2:]
    if not height or not width or height % CELL or width % CELL:
        raise LaddError(f"image sides must be multiples of {CELL} pixels, not {height}x{width}")
    grid = images.reshape(len(images), 3, height // CELL, CELL, width // CELL, CELL)
    count = (height // CELL) * (width // CELL)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(images), count, 3, CELL, CELL)
