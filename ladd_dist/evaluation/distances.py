"""Distances between sets of pictures."""

import numpy as np
import scipy.linalg
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` in float64.

    Args:
        a: features ``(n, F)``.
        b: features ``(m, F)``.

    Raises:
        ValueError: if a set has fewer than two rows or the widths differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two or more features of one width, not {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = a.double().cpu().numpy(), b.double().cpu().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # tr sqrt(C_a C_b) from the eigenvalues of the symmetric sqrt(C_a) C_b sqrt(C_a): real and non-negative.
    root = scipy.linalg.sqrtm(cov_x + 1e-12 * np.eye(len(cov_x))).real
    eigenvalues = np.linalg.eigvalsh(root @ cov_y @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)
