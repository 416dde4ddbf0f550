"""How much of a student's training an export shows: rounding takes away changes that are smaller than its steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

_FEW = 0.1
"""A share below which most of the training is lost. A start that has the export's precision already, as public
teachers have, takes on a change only where it exceeds half a step of rounding. Where a tenth of normally distributed
changes do, that is 1.64 standard deviations, and the others have 56% of the changes' squared length."""


@dataclass
class Changed:
    """Counts trained weights that differ from those that they started as.

    Attributes:
        dtype: the export's.
        weights: all that were counted.
        exact: those that differ in fp32.
        rounded: those that still differ when both are rounded to ``dtype``.
    """

    dtype: torch.dtype
    weights: int = 0
    exact: int = 0
    rounded: int = 0

    def count(self, trained: Tensor, start: Tensor) -> None:
        """Add a tensor, in fp32, and what it started as, in any dtype."""
        self.weights += trained.numel()
        self.exact += int((trained != start.float()).sum())
        self.rounded += int((trained.to(self.dtype) != start.to(self.dtype)).sum())

    def __str__(self) -> str:
        if self.dtype == torch.float32:
            return f"{self._share(self.exact)} of the {self.weights:,} trained weights differ from the start's"
        name = str(self.dtype).removeprefix("torch.")
        return (
            f"{self._share(self.rounded)} of the {self.weights:,} trained weights differ from the start's in {name}, "
            f"{self._share(self.exact)} in float32"
        )

    def problem(self, lr: float) -> str | None:
        """What is wrong and what to do about it, if most of the training is lost.

        Args:
            lr: the student's learning rate.
        """
        if self.rounded >= _FEW * self.weights:
            return None
        if self.exact >= _FEW * self.weights:
            lost = f"changes of a training with student_optimizer.lr={lr:g} are mostly lost in rounding"
            return f"{self}: {lost}. Export with --dtype fp32, or train longer or with a larger one"
        return f"{self}: student_optimizer.lr={lr:g} was too small to show. Train longer, or with a larger one"

    def _share(self, count: int) -> str:
        return f"{100 * count / max(1, self.weights):.3g}%"
