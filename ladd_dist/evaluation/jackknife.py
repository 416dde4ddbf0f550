"""How far a number would be from itself on other prompts: the jackknife that leaves out one group of them at a time.

Every number of an evaluation is computed once of all pictures and once without each group: its *replicates*
``(1 + G,)``. Sums, differences and ratios are taken replicate by replicate, so that what two sets share (prompts,
noise, the reference) cancels out of an interval as it does out of the number. A bootstrap would serve less: it draws
pictures twice, and a Frechet distance of few different pictures is another one altogether.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from ladd_dist.evaluation.results import Estimate

_GROUPS = 20
_CONFIDENCE = 0.95


def groups_of(prompts: Sequence[Hashable], buckets: Sequence[Hashable] | None = None) -> Tensor:
    """The group of each picture, int64 ``(n,)``: all pictures of one prompt are in one, since they vary together.

    Prompts are dealt to 20 groups in turn, in order of first appearance, bucket by bucket: they come to their buckets
    in turn, too, and where both counts share a factor, groups would differ by what tells buckets apart. Fewer than 20
    make a group each.

    Args:
        buckets: of each picture; None if all are of one.
    """
    places = numbered(buckets).tolist() if buckets else [0] * len(prompts)
    by_bucket = [prompts[i] for i in sorted(range(len(prompts)), key=places.__getitem__)]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(by_bucket))}
    return torch.tensor([numbers[prompt] % _GROUPS for prompt in prompts], dtype=torch.long)


def numbered(things: Sequence[Hashable]) -> Tensor:
    """The number of each, int64 ``(n,)``, equal ones alike, in order of first appearance."""
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    return torch.tensor([numbers[thing] for thing in things], dtype=torch.long)


def mean_replicates(values: Tensor, groups: Tensor) -> np.ndarray:
    """Of the mean of numbers ``(n,)``: float64 ``(1 + G,)``; nan without a group that held all of them."""
    numbers, count = values.double(), _count(groups)
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, numbers)
    size = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, torch.ones_like(numbers))
    without = (total.sum() - total) / (size.sum() - size)
    return torch.cat([numbers.mean()[None], without]).numpy()


def estimate(replicates: np.ndarray) -> Estimate:
    """A number and the interval that says how it would scatter over other prompts and noise, 95% of the time.

    By the delete-a-group jackknife (Shao and Tu 1995, sec. 2.3): variance ``(G - 1) / G * sum (r_g - mean)^2``, and
    Student's t of ``G - 1`` degrees. It says nothing of a bias, such as the Frechet distance's, which falls with the
    number of pictures: compare distances of as many pictures only. Without two groups there is no interval.

    Args:
        replicates: ``(1 + G,)``; those that are no number, of groups without which nothing is left, do not count.
    """
    value, left_out = float(replicates[0]), replicates[1:][np.isfinite(replicates[1:])]
    count = len(left_out)
    if count < 2:
        return Estimate(value=value)
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())
    half = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * error)
    return Estimate(value=value, low=value - half, high=value + half)


def _count(groups: Tensor) -> int:
    return int(groups.max()) + 1
