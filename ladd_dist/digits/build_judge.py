"""Train the judge's feature network on the judge's part of the scans."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ladd_dist.digits.judge import FeatureNet
from ladd_dist.digits.scans import Scans, render

BATCH = 64
LEARNING_RATE = 2e-3


def augment(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Turn (up to 8 degrees), scale (10%), shift (2 pixels) and add noise (0.05): cells (N, 1, 32, 32)."""
    n = len(ink)
    angle, scale, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1).unbind()
    angle, scale = angle * math.radians(8), 1 + 0.1 * scale
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = torch.stack([cos, -sin, dx / 8, sin, cos, dy / 8], dim=1).view(n, 2, 3)
    moved = F.grid_sample(ink, F.affine_grid(rows, list(ink.shape), align_corners=False), align_corners=False)
    return (moved + 0.05 * torch.randn(moved.shape, generator=generator)).clamp(0, 1)


def train_judge(scans: Scans, steps: int, seed: int) -> FeatureNet:
    """Train the feature network as a classifier of single augmented cells."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = FeatureNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    ink = render(scans.images[:, None], "32x32")[:, :1]
    for _ in tqdm(range(steps), desc="judge", unit="step"):
        chosen = torch.randint(len(ink), (BATCH,), generator=generator)
        loss = F.cross_entropy(net(augment(ink[chosen], generator)), scans.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def save_judge(net: FeatureNet, path: Path) -> None:
    """Write the weights (0.3 MB)."""
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
