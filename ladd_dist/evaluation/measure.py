"""From what is kept of the drawn sets to their scores."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.evaluation.distances import (
    Gaussian,
    frechet_replicates,
    gaussians,
    kernel_replicates,
    kernel_replicates_apart,
    pair_distances,
)
from ladd_dist.evaluation.draw import by_bucket
from ladd_dist.evaluation.drawn import Drawn, Rows
from ladd_dist.evaluation.entrants import REFERENCE, Rivals, rivals
from ladd_dist.evaluation.instruments import BROKEN, DETAIL, JUDGE, PATCHES, READ, SCORE
from ladd_dist.evaluation.jackknife import estimate, groups_of, mean_replicates, numbered
from ladd_dist.evaluation.judges import TEACHER
from ladd_dist.evaluation.results import Distance, Estimate, Measures, TeacherDistance
from ladd_dist.evaluation.teacher_features import by_level, comparable

FINE, COARSE = "fine", "coarse"
"""The teacher's features at each of its two noise levels: of texture, and of layout."""
SPACES = (JUDGE, PATCHES, TEACHER, FINE, COARSE)
"""Feature spaces in which sets are compared, the first that there is above all."""


@dataclass(frozen=True)
class Measured:
    """Scores of every set by its name, over all pictures and over those of each bucket.

    ``features`` are number and width of a set's vectors in the space that counts.
    """

    features: tuple[int, int]
    overall: dict[str, Measures]
    by_bucket: dict[str, dict[str, Measures]]


def measure(
    config: Config,
    drawn: dict[str, Drawn],
    other_half: Drawn,
    entries: list[PromptEntry],
    reference: Mapping[str, Rows] = MappingProxyType({}),
) -> Measured:
    """Score sets of the same prompts and noise.

    Args:
        other_half: the guided teacher's, with other noise: all sets are held against it.
        reference: the judge's features of other pictures, by bucket.
    """

    def over(rows: list[PromptEntry], others: Iterable[Rows]) -> "_Sets":
        joined = Rows.joined(others) if others else None
        return _Sets(drawn, other_half, rows, rivals(config), joined)

    overall = over(entries, list(reference.values()))
    buckets = {
        name: over(rows, [reference[name]] if name in reference else []) for name, rows in by_bucket(entries).items()
    }
    return Measured(overall.features, overall.measures(), {name: of.measures() for name, of in buckets.items()})


class _Sets:
    """Sets of the same pictures, numbered as `entries` are."""

    def __init__(
        self,
        drawn: dict[str, Drawn],
        other_half: Drawn,
        entries: Sequence[PromptEntry],
        rivals: dict[str, Rivals],
        reference: Rows | None,
    ) -> None:
        self.numbers = torch.tensor([entry.id for entry in entries])
        self.groups = groups_of([entry.prompt for entry in entries], [entry.bucket.name for entry in entries])
        self.rows = {name: _with_levels(of_set.of(self.numbers)) for name, of_set in drawn.items()}
        self.prompts = numbered([(entry.prompt, entry.bucket.name) for entry in entries])
        self.rivals, self.half = rivals, _with_levels(other_half.of(self.numbers))
        several = len(entries) > 1  # with one picture there is no kernel distance, and no covariance
        self.reference = reference if several and reference and reference.pictures.unique().numel() > 1 else None
        spaces = [space for space in SPACES if space in self.rows[REFERENCE]]
        self.distances = {space: self._distances(self.half[space], space) for space in spaces} if several else {}
        self.main = spaces[0]
        self.within = {name: self._diversity(of_set[self.main]) for name, of_set in self.rows.items()}

    @property
    def features(self) -> tuple[int, int]:
        """Number and width of a set's vectors in the space that counts."""
        values = self.half[self.main].values
        return len(values), _scale(self.main, values)(values).shape[1]

    def measures(self) -> dict[str, Measures]:
        return {name: self._measures(name) for name in self.rows}

    def _measures(self, name: str) -> Measures:
        rows, base = self.rows[name], self.rows[REFERENCE]
        return Measures(
            pictures=len(self.numbers),
            broken=int(rows[BROKEN].values.sum()),
            judge=self._to_teacher(name, JUDGE),
            patches=self._to_teacher(name, PATCHES),
            teacher=self._to_teacher(name, TEACHER),
            fine=self._to_teacher(name, FINE),
            coarse=self._to_teacher(name, COARSE),
            reference=self._to_reference(rows),
            high_frequencies=_ratio(self._mean(rows[DETAIL]), self._mean(base[DETAIL])),
            diversity=_ratio(self.within[name], self.within[REFERENCE]),
            read=estimate(self._mean(rows[READ])) if READ in rows else None,
            scores={
                key.removeprefix(SCORE): estimate(self._mean(of)) for key, of in rows.items() if key.startswith(SCORE)
            },
        )

    def _mean(self, rows: Rows) -> np.ndarray:
        return mean_replicates(rows.values, self.groups)

    def _of_rows(self, rows: Rows) -> Tensor:
        """The group of each."""
        return self.groups[torch.searchsorted(self.numbers, rows.pictures)]

    def _to_teacher(self, name: str, space: str) -> TeacherDistance | None:
        if space not in self.distances:
            return None
        found, rivals = self.distances[space], self.rivals.get(name, Rivals())
        excess = found[name].excess
        return TeacherDistance(
            fd=_estimate(found[name].fd),
            kid=estimate(found[name].kid),
            excess=estimate(excess),
            ratio=_ratio(excess, found[rivals.euler].excess) if rivals.euler else None,
            ratio_renoised=_ratio(excess, found[rivals.renoised].excess) if rivals.renoised else None,
        )

    def _to_reference(self, rows: dict[str, Rows]) -> Distance | None:
        """The reference's own pictures stay all in: an interval is that of other prompts and noise alone."""
        if self.reference is None or JUDGE not in rows:
            return None
        drawn, target = rows[JUDGE], self.reference
        values, groups = drawn.values, self._of_rows(drawn)
        kid = kernel_replicates_apart(values, target.values, drawn.pictures, target.pictures, groups)
        if min(len(values), len(target.values)) <= values.shape[1]:
            return Distance(kid=estimate(kid))
        sets = gaussians(values, groups)
        fixed = [Gaussian.of(target.values)] * len(sets)
        return Distance(fd=estimate(frechet_replicates(sets, fixed)), kid=estimate(kid))

    def _distances(self, half: Rows, space: str) -> "dict[str, _Replicates]":
        """Of every set to the guided teacher's other half.

        Its first half, too: like all sets it shares no noise with the other, so what lies between the two is what
        would be left of a perfect student's distance. Held against the first half, whose noise it shares, a student
        would look nearer than that.
        """
        scale, groups = _scale(space, half.values), self._of_rows(half)
        target = scale(half.values)
        to = gaussians(target, groups) if len(target) > target.shape[1] else None

        def both(rows: Rows) -> tuple[np.ndarray | None, np.ndarray]:
            values = scale(rows.values)
            kid = kernel_replicates(values, target, half.pictures, groups)
            return None if to is None else frechet_replicates(gaussians(values, groups), to), kid

        found = {name: both(rows[space]) for name, rows in self.rows.items()}
        floor, _ = found[REFERENCE]
        return {
            name: _Replicates(fd, kid, kid if fd is None or floor is None else fd - floor)
            for name, (fd, kid) in found.items()
        }

    def _diversity(self, rows: Rows) -> np.ndarray | None:
        """Replicates of the mean distance between two pictures of one prompt and bucket; None if no prompt has two.

        Pictures of one bucket have as many rows, which make one vector; those of others may have more.
        """
        numbers = self.numbers
        count = torch.searchsorted(rows.pictures, numbers, right=True) - torch.searchsorted(rows.pictures, numbers)
        found = []
        for size in count.unique():
            of_size = count == size
            flat = rows.of(numbers[of_size]).values.reshape(int(of_size.sum()), -1)
            which, means = pair_distances(flat, self.prompts[of_size])
            first = [int((self.prompts == prompt).nonzero()[0, 0]) for prompt in which.tolist()]
            found.append((means, self.groups[torch.tensor(first, dtype=torch.long)]))
        means, of_prompts = (torch.cat(column) for column in zip(*found, strict=True))
        return mean_replicates(means, of_prompts) if len(means) else None


@dataclass(frozen=True)
class _Replicates:
    """Of a set's distances in a space, each ``(1 + G,)``; no ``fd`` where there are too few rows."""

    fd: np.ndarray | None
    kid: np.ndarray
    excess: np.ndarray


def _with_levels(rows: dict[str, Rows]) -> dict[str, Rows]:
    """The teacher's features also level by level."""
    if TEACHER not in rows:
        return rows
    pictures, values = rows[TEACHER]
    return rows | {space: Rows(pictures, of) for space, of in zip((FINE, COARSE), by_level(values), strict=True)}


def _scale(space: str, reference: Tensor) -> Callable[[Tensor], Tensor]:
    teachers = space in (TEACHER, FINE, COARSE)
    return (lambda rows: comparable(rows, reference)) if teachers else lambda rows: rows


def _estimate(replicates: np.ndarray | None) -> Estimate | None:
    return None if replicates is None else estimate(replicates)


def _ratio(of: np.ndarray | None, to: np.ndarray | None) -> Estimate | None:
    """None of what is not there, and over a base that is not positive."""
    if of is None or to is None or not to[0] > 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(of / to)
