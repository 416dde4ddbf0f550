"""How thick the strokes of drawn digits are: a preference that can be measured, to try preference training on."""

import torch.nn.functional as F
from torch import Tensor


def stroke(prompts: list[str], pictures: Tensor) -> Tensor:
    """Mean width of the strokes in pixels: twice the ink over its total variation; thicker is higher.

    A stroke of width w and length l has ink w l and edges of 2 l in all, which its total variation measures however
    blurred they are (coarea formula). Ink's brightness, the number of strokes and their length cancel out.

    Args:
        prompts: not looked at.
        pictures: ``(B, 3, H, W)`` in [0, 1], white ink on black.

    Returns:
        ``(B,)``, 0 for a picture without ink.
    """
    ink = F.pad(pictures.float().mean(1), (1, 1, 1, 1))
    down, right = ink[:, 1:, :-1] - ink[:, :-1, :-1], ink[:, :-1, 1:] - ink[:, :-1, :-1]
    edges = (down.square() + right.square()).sqrt().sum((1, 2))
    return 2 * ink.sum((1, 2)) / edges.clamp(min=1e-6)
