"""What an evaluation leaves in a run's folder, as its writer and its readers see it."""

from typing import Literal

from pydantic import BaseModel

RESULTS = "evaluation/results.json"
PICTURES = "evaluation/pictures"


class SetResult(BaseModel):
    """How one way of drawing scored.

    ``fd`` is the Frechet distance to the guided teacher's pictures, ``excess`` what of it lies above the guided
    teacher's own split-half distance, ``excess_ratio`` the student's excess over that of the undistilled teacher
    at the same number of steps. ``accuracy`` is the share of pictures whose prompt can be read.
    """

    name: str
    label: str
    role: Literal["teacher", "student"]
    steps: int
    guidance: float | None = None
    fd: float
    excess: float
    excess_ratio: float | None = None
    accuracy: float | None = None
    accuracy_by_bucket: dict[str, float] | None = None
    seconds_per_image: float


class Results(BaseModel):
    """``evaluation/results.json``; the guided teacher comes first."""

    seed: int
    samples: int
    judge: str
    checkpoint: str
    weights: str
    split_half_fd: float
    sets: list[SetResult]

    @property
    def guided(self) -> SetResult:
        """The reference: the teacher as it is meant to be used."""
        return next(s for s in self.sets if s.role == "teacher")

    @property
    def student(self) -> SetResult:
        """The student at its most steps."""
        return max((s for s in self.sets if s.role == "student"), key=lambda s: s.steps)

    @property
    def undistilled(self) -> SetResult | None:
        """The unguided teacher at the student's steps, if it was drawn."""
        rivals = (s for s in self.sets if s.role == "teacher" and s is not self.guided)
        return next((s for s in rivals if s.steps == self.student.steps), None)


class PictureIndex(BaseModel):
    """``evaluation/pictures/index.json``: names of the sets, prompts of each bucket."""

    sets: list[str]
    buckets: dict[str, list[str]]
