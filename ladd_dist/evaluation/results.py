"""What an evaluation leaves in a run's folder, as its writer and its readers see it."""

from typing import Literal

from pydantic import BaseModel, computed_field


class Estimate(BaseModel):
    """A number, and where it would be on other prompts and noise 95% of the time, see `jackknife.estimate`."""

    value: float
    low: float | None = None
    high: float | None = None


class Distance(BaseModel):
    """Between two sets of pictures in one feature space.

    ``fd`` is the Frechet distance, None where there were no more feature vectors than features; ``kid`` the kernel
    distance.
    """

    fd: Estimate | None = None
    kid: Estimate


class TeacherDistance(Distance):
    """How far a set is from the guided teacher's other half: pictures of the same prompts with other noise.

    ``excess`` is what of ``fd`` lies above that of the guided teacher's own set, or where there is none ``kid``,
    which needs no such correction. ``ratio`` is a student's excess over that of the undistilled teacher at the same
    steps by Euler's method, ``ratio_renoised`` over that of the teacher which is sampled as the student is; None
    where that was not drawn, or its excess is not positive.
    """

    excess: Estimate
    ratio: Estimate | None = None
    ratio_renoised: Estimate | None = None


class Measures(BaseModel):
    """Scores of a set's pictures, all of them or those of a bucket.

    ``judge``, ``patches`` and ``teacher`` are distances in the judge's features, in those of crops at full resolution
    (None if the judge sees whole pictures at full resolution, or no picture was larger than a crop) and in the
    teacher's own, ``fine`` and ``coarse`` in those of its two noise levels, which are of texture and of layout;
    ``reference`` is that to the reference set, in the judge's. ``high_frequencies`` is the share of
    contrast in the upper band of frequencies, and ``diversity`` the mean distance of two pictures of one prompt: both
    over those of the guided teacher, where 1 is right; ``diversity`` is None if no prompt was drawn twice. ``read``
    is the share of pictures whose prompt the judge can read, and ``scores`` are means by scorer. Zeros stand for
    the latents of ``broken`` pictures, which were not finite or above 10,000. A bucket's single picture has no
    distances.
    """

    pictures: int
    broken: int = 0
    judge: TeacherDistance | None = None
    patches: TeacherDistance | None = None
    teacher: TeacherDistance | None = None
    fine: TeacherDistance | None = None
    coarse: TeacherDistance | None = None
    reference: Distance | None = None
    high_frequencies: Estimate | None = None
    diversity: Estimate | None = None
    read: Estimate | None = None
    scores: dict[str, Estimate] = {}

    @property
    def distance(self) -> TeacherDistance | None:
        """The one that counts: in the judge's features, without a judge in the teacher's own; None of one picture."""
        return self.judge or self.teacher

    @property
    def main(self) -> TeacherDistance:
        """The same of an evaluation's pictures, or of those of a bucket that has several."""
        assert self.distance is not None
        return self.distance


class SetResult(BaseModel):
    """How one way of drawing scored."""

    name: str
    label: str
    role: Literal["teacher", "student"]
    steps: int
    guidance: float | None = None
    renoised: bool = False
    """A teacher that was sampled as the student is: x0 predicted, noised to the student's next time, and so on."""
    seconds_per_image: float
    measures: Measures
    measures_by_bucket: dict[str, Measures]


class Results(BaseModel):
    """``results.json``; the guided teacher comes first."""

    seed: int
    samples: int
    judge: str
    checkpoint: str
    digest: str
    """`Checkpoint.digest`."""
    weights: str
    adapters: list[str] = []
    """Of other trainings, added to these weights: as `models.lora.called` says."""
    features: tuple[int, int]
    """Vectors per set, one or more of each picture, and their width."""
    reference: str | None = None
    """The folder of other pictures, if there was one."""
    missing: list[str] = []
    """Scores that were left out, and why."""
    sets: list[SetResult]

    def _rival(self, student: SetResult) -> SetResult | None:
        """The unguided teacher at as many steps, if it was drawn."""
        rivals = (s for s in self.sets if s.role == "teacher" and s is not self.guided and not s.renoised)
        return next((s for s in rivals if s.steps == student.steps), None)

    @property
    def guided(self) -> SetResult:
        """The reference: the teacher as it is meant to be used."""
        return next(s for s in self.sets if s.role == "teacher")

    @property
    def buckets(self) -> list[str]:
        """Whose pictures are also measured apart, if there are several."""
        names = list(self.guided.measures_by_bucket)
        return names if len(names) > 1 else []

    @property
    def student(self) -> SetResult:
        """The student at its most steps."""
        return max((s for s in self.sets if s.role == "student"), key=lambda s: s.steps)

    @property
    def undistilled(self) -> SetResult | None:
        """The unguided teacher at the student's steps, if it was drawn."""
        return self._rival(self.student)

    def lacks_ratio(self, scored: SetResult) -> bool:
        """Whether there is an excess to compare a student's with, and it is no base: not positive."""
        return self._no_base(scored) is not None

    def _no_base(self, scored: SetResult) -> Estimate | None:
        rival = self._rival(scored) if scored.role == "student" else None
        return rival.measures.main.excess if rival and scored.measures.main.ratio is None else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def caveats(self) -> list[str]:
        """What these numbers cannot tell, a sentence each."""
        found = [f"{why[0].lower()}{why[1:]}" for why in self.missing]
        found += [
            f"{s.measures.broken} pictures of {s.label} were not finite or above 10,000: zeros stand for them"
            for s in self.sets
            if s.measures.broken
        ]
        found += [
            f"no ratio for {s.label}: the undistilled teacher's excess, {base.value:.3g}, is not positive, so "
            f"{self.samples} pictures cannot tell it from the guided teacher"
            for s in self.sets
            if (base := self._no_base(s))
        ]
        vectors, width = self.features
        if vectors <= width:
            found.append(
                f"{vectors} feature vectors per set are too few for {width} features, whose covariances would be "
                "singular: kernel distances stand for Frechet distances, or raise evaluation.samples"
            )
        return found


class Evaluated(BaseModel):
    """A line of ``evaluations.jsonl``: the student after so many iterations, with the averaged weights.

    ``overall`` holds all sets, the teacher's too, ``by_bucket`` the student's. ``judge`` is what the distances are
    called that come first.
    """

    iteration: int
    judge: str
    overall: dict[str, Measures]
    by_bucket: dict[str, dict[str, Measures]]


class PictureIndex(BaseModel):
    """``pictures/index.json``: names of the sets, prompts of each bucket."""

    sets: list[str]
    buckets: dict[str, list[str]]
