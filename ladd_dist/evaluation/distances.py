"""Distances between sets of pictures, of their features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ladd_dist.evaluation.jackknife import mean_replicates

_CHUNK = 512
"""Rows of a kernel matrix that are held at once."""


@dataclass(frozen=True)
class Gaussian:
    """Mean ``(F,)`` and covariance ``(F, F)`` of a feature set, float64."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor) -> "Gaussian":
        """Fitted to features ``(n, F)``, two or more."""
        rows = features.double().cpu()
        mean = rows.mean(0)
        return Gaussian(mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1))

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(self, reference: "Gaussian") -> float:
        """The Frechet distance (Heusel et al. 2017, arXiv 1706.08500).

        ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` in float64. Of two sets that are drawn alike it is not
        0 but falls with their number of rows, and means little where there are no more rows than features.
        """
        # tr sqrt(C_a C_b) from the eigenvalues of the symmetric sqrt(C_b) C_a sqrt(C_b): real and non-negative.
        eigenvalues = torch.linalg.eigvalsh(reference.root @ self.covariance @ reference.root)
        cross = eigenvalues.clamp(min=0).sqrt().sum()
        traces = self.covariance.trace() + reference.covariance.trace()
        return float((self.mean - reference.mean).square().sum() + traces - 2 * cross)


def frechet_replicates(sets: "Sequence[Gaussian | None]", reference: "Sequence[Gaussian | None]") -> np.ndarray:
    """Frechet distances of all pictures, and without each group: float64 ``(1 + G,)``.

    Args:
        sets: as of `gaussians`.
        reference: the same of the reference, or the whole of it as often.
    """
    pairs = zip(sets, reference, strict=True)
    return np.array([np.nan if one is None or other is None else one.distance(other) for one, other in pairs])


def gaussians(features: Tensor, groups: Tensor) -> "list[Gaussian | None]":
    """Fitted to all features ``(n, F)``, and to those without each group; None where fewer than two are left.

    Args:
        groups: of each row, int64 ``(n,)``.
    """
    left = [features, *(features[groups != group] for group in range(int(groups.max()) + 1))]
    return [Gaussian.of(rows) if len(rows) > 1 else None for rows in left]


def kernel_replicates(a: Tensor, b: Tensor, pictures: Tensor, groups: Tensor) -> np.ndarray:
    """Kernel distance (KID; Binkowski et al. 2018, arXiv 1801.01401), and what it is without each group.

    The squared maximum mean discrepancy of the kernel ``(x . y / F + 1)^3``, by the unbiased statistic of paired
    samples (Gretton et al. 2012, lemma 6): the mean over pairs of pictures i != j of
    ``k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i)``. Pairs of one picture are left out of every term, so it
    is unbiased for any number of pictures, though both sets are of the same prompts and a picture has several rows.
    Of two sets that are drawn alike it is around 0, and may be negative.

    Args:
        a: features ``(n, F)``.
        b: features ``(n, F)``, row by row of the same pictures' prompts.
        pictures: the picture of each row, int64 ``(n,)``.
        groups: the group of each row, int64 ``(n,)``.

    Returns:
        float64 ``(1 + G,)``; nan where fewer than two pictures are left.

    Raises:
        ValueError: if the sets are not of one shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"need features of the same pictures, not {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = a.double().cpu(), b.double().cpu()
    member = torch.nn.functional.one_hot(groups).double()
    sums, counts = torch.zeros(2, member.shape[1], member.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(x)).split(_CHUNK):
        inside = _kernel(x[rows], x) + _kernel(y[rows], y)
        apart = (pictures[rows, None] != pictures).double()
        of_pairs = apart * (inside - _kernel(x[rows], y) - _kernel(y[rows], x))
        sums += member[rows].T @ of_pairs @ member
        counts += member[rows].T @ apart @ member
    return _without_each(sums, counts).numpy()


def kernel_replicates_apart(a: Tensor, b: Tensor, pictures: Tensor, b_pictures: Tensor, groups: Tensor) -> np.ndarray:
    """As `kernel_replicates`, to pictures that share nothing with the set and stay all in: KID as it was published.

    Args:
        a: features ``(n, F)``.
        b: features ``(m, F)``.
        pictures: the picture of each row of ``a``, int64 ``(n,)``.
        b_pictures: that of each row of ``b``, of two or more.
        groups: the group of each row of ``a``.

    Returns:
        float64 ``(1 + G,)``; nan where fewer than two pictures are left.
    """
    x, y = a.double().cpu(), b.double().cpu()
    across = torch.cat([_kernel(x[rows], y).mean(1) for rows in torch.arange(len(x)).split(_CHUNK)])
    of_a = _without_each(*_of_pairs(x, pictures, groups))
    of_b = _without_each(*_of_pairs(y, b_pictures, torch.zeros_like(b_pictures)))[0]
    return (of_a + of_b).numpy() - 2 * mean_replicates(across, groups)


def _of_pairs(x: Tensor, pictures: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's sum over pairs of rows of different pictures, by their groups, and their number: ``(G, G)``."""
    member = torch.nn.functional.one_hot(groups).double()
    sums, counts = torch.zeros(2, member.shape[1], member.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(x)).split(_CHUNK):
        apart = (pictures[rows, None] != pictures).double()
        sums += member[rows].T @ (apart * _kernel(x[rows], x)) @ member
        counts += member[rows].T @ apart @ member
    return sums, counts


def _kernel(u: Tensor, v: Tensor) -> Tensor:
    return (u @ v.T / u.shape[1] + 1) ** 3


def _without_each(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean over pairs, from symmetric sums and numbers by group ``(G, G)``, and that without each group."""
    both = torch.stack([sums, counts])
    total = both.sum((1, 2))
    left = total[:, None] - 2 * both.sum(2) + both.diagonal(dim1=1, dim2=2)
    means, of = torch.cat([total[:, None], left], 1)
    return means / of


def pair_distances(features: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """How different the pictures of one prompt are: the mean distance between two, of every prompt that has two.

    Args:
        features: one row per picture ``(n, F)``.
        prompts: the prompt of each, int64 ``(n,)``.

    Returns:
        The prompts, int64 ``(p,)``, and their mean Euclidean distances, float64 ``(p,)``.
    """
    several = [prompt for prompt in prompts.unique().tolist() if int((prompts == prompt).sum()) > 1]
    means = [torch.pdist(features[prompts == prompt].double()).mean() for prompt in several]
    return torch.tensor(several, dtype=torch.long), torch.stack(means) if means else torch.zeros(0).double()
