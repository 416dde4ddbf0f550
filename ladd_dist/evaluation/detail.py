"""What is small in a picture: high frequencies, where residual noise shows, and crops at full resolution."""

import torch
from torch import Tensor

from ladd_dist.diffusion.noise import generator

HIGH = 0.25
"""Cycles per pixel, half of what pixels can show: above it lies the upper band."""
CROPS = 2
"""Per picture."""


def high_frequency_share(images: Tensor) -> Tensor:
    """The share of a picture's contrast that lies in its upper band of spatial frequencies.

    Of the power spectrum of its brightness, without the mean: the part beyond a quarter of a cycle per pixel, in any
    direction. The picture fades out towards its borders (Hann window), which would otherwise count as edges.

    Args:
        images: ``(B, 3, H, W)``, sides of 3 or more.

    Returns:
        float64 ``(B,)`` on the CPU; 0 for a picture of one brightness.
    """
    grey = images.detach().double().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    height, width = grey.shape[1:]
    down, across = (torch.hann_window(side, periodic=False, dtype=grey.dtype) for side in (height, width))
    power = torch.fft.fft2(grey * torch.outer(down, across).to(grey.device)).abs().square().cpu()
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    high = torch.hypot(rows[:, None], columns[None]) > HIGH
    return power[:, high].sum(1) / power.sum((1, 2)).clamp(min=torch.finfo(power.dtype).tiny)


def crops(images: Tensor, side: int, numbers: list[int]) -> Tensor:
    """Square cut-outs at full resolution, for a patch FD (as in SDXL-Lightning, arXiv 2402.13929, sec. 5).

    Args:
        images: ``(B, C, H, W)``, no smaller than ``side``.
        side: in pixels.
        numbers: of the pictures: places are a function of these alone, so that all sets are cut alike.

    Returns:
        ``(B * CROPS, C, side, side)``, those of a picture one after the other.
    """
    height, width = images.shape[2:]
    cut = []
    for image, number in zip(images, numbers, strict=True):
        places = torch.rand(CROPS, 2, generator=generator(torch.device("cpu"), number))
        for y, x in (places * torch.tensor([height - side + 1, width - side + 1])).long().tolist():
            cut.append(image[:, y : y + side, x : x + side])
    return torch.stack(cut)
