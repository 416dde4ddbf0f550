"""The judge of digit images: features for the Frechet distance, and a reader that checks the prompt.

Both know only the judge's third of the real scans, which the teacher never saw, and they are different
methods: whoever fools the feature network has not thereby fooled the reader.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.svm import SVC
from torch import Tensor, nn

from ladd_dist.digits.prompts import digits_in
from ladd_dist.digits.scans import cut_cells, load_part, render
from ladd_dist.errors import LaddError, MissingWeights

WEIGHTS = Path(__file__).parent / "judge.safetensors"
FEATURES = 48
BATCH = 256

READER_SHIFTS = ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))
"""Pixels by which the reader also sees each scan moved: 98.2% instead of 97.7% of unseen digits are read."""


class FeatureNet(nn.Module):
    """A small convolutional classifier of one cell; its penultimate layer is the feature space."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 16, 32, 64]
        self.convs = nn.ModuleList(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1) for inside, outside in pairwise(widths)
        )
        self.penultimate = nn.Linear(64 * 4 * 4, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)

    def features(self, ink: Tensor) -> Tensor:
        """Grey cells (N, 1, 32, 32) in [0, 1] -> (N, 48). No ReLU: a Gaussian should describe them."""
        x = ink * 2 - 1
        for conv in self.convs:
            x = F.gelu(conv(x))
        features: Tensor = self.penultimate(x.flatten(1))
        return features

    def forward(self, ink: Tensor) -> Tensor:
        """Grey cells (N, 1, 32, 32) -> logits (N, 10)."""
        logits: Tensor = self.classes(F.gelu(self.features(ink)))
        return logits


def small_cells(images: Tensor) -> Tensor:
    """Canvases (B, 3, H, W) -> grey cells at the scans' size: float64 (B, cells, 64) on the CPU."""
    grey = cut_cells(images.detach().cpu().double()).mean(2)
    return F.avg_pool2d(grey, 4).flatten(2)


class DigitJudge:
    """Judges images of any bucket, cell by cell.

    Args:
        device: where the feature network runs; the reader always runs on the CPU.
        weights: the feature network, by default the one beside this file.

    Raises:
        MissingWeights: of the feature network.
    """

    def __init__(self, device: torch.device | str = "cpu", weights: Path = WEIGHTS) -> None:
        if not weights.is_file():
            raise MissingWeights(f"{weights} is missing: run python -m ladd_dist.digits.build --judge-only")
        self.device = torch.device(device)
        self.net = FeatureNet()
        self.net.load_state_dict(load_file(weights))
        self.net.to(self.device).eval().requires_grad_(False)
        scans = load_part("judge")
        self.fit_indices = scans.indices
        """Rows of ``load_digits()`` that the judge knows."""
        # libsvm without probabilities is deterministic.
        self._reader = SVC(C=10.0, gamma="scale")
        shifted = [torch.roll(render(scans.images[:, None], "32x32"), shift, (2, 3)) for shift in READER_SHIFTS]
        cells = small_cells(torch.cat(shifted))[:, 0]
        self._reader.fit(cells.numpy(), scans.labels.repeat(len(READER_SHIFTS)).numpy())

    @property
    def name(self) -> str:
        """What the scores of this judge are called."""
        return "digits"

    @property
    def crop(self) -> None:
        """It sees every cell at full resolution."""
        return None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Penultimate features of every cell, canvases one after the other.

        Args:
            images: float (B, 3, H, W) in [0, 1], sides multiples of 32.

        Returns:
            float64 (B * cells, 48) on the CPU.

        Raises:
            LaddError: for other image shapes.
        """
        ink = cut_cells(images).flatten(0, 1).float().mean(1, keepdim=True)
        chunks = [self.net.features(chunk.to(self.device)).cpu() for chunk in ink.split(BATCH)]
        return torch.cat(chunks).double() if chunks else torch.zeros(0, FEATURES, dtype=torch.float64)

    def read(self, images: Tensor) -> Tensor:
        """The digit the reader sees in every cell: int64 (B, cells), row by row.

        Raises:
            LaddError: for image sides that are not multiples of 32.
        """
        cells = small_cells(images)
        if not len(cells):
            return torch.zeros(cells.shape[:2], dtype=torch.long)
        return torch.from_numpy(self._reader.predict(cells.flatten(0, 1).numpy())).long().view(cells.shape[:2])

    def reads_prompt(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Whether the reader sees exactly the digits that each prompt names, in order: bool (B,).

        Raises:
            LaddError: if counts differ: prompts and images, or digits of a prompt and cells of its image.
        """
        if len(images) != len(prompts):
            raise LaddError(f"{len(prompts)} prompts were given for {len(images)} images: there must be one each")
        seen = self.read(images)
        named = [digits_in(prompt) for prompt in prompts]
        for prompt, digits in zip(prompts, named, strict=True):
            if len(digits) != seen.shape[1]:
                raise LaddError(
                    f"prompt {prompt!r} names {len(digits)} digits, but its image has {seen.shape[1]} cells"
                )
        return (seen == torch.tensor(named, dtype=torch.long).view(seen.shape)).all(1)
