"""Who is evaluated: a network, a way to sample it, and a number of steps."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.drawing.pipeline import Encoded, Pipeline
from ladd_dist.drawing.sampling import VelocityNetwork

REFERENCE = "teacher_guided"
"""Whose pictures the others are held against."""


@dataclass(frozen=True)
class Entrant:
    """One way of drawing that is evaluated."""

    name: str
    label: str
    role: Literal["teacher", "student"]
    steps: int
    guidance: float
    renoised: bool = False
    """Of a teacher: sampled as the student is."""

    def draw(self, pipeline: Pipeline, network: VelocityNetwork, encoded: Encoded) -> Tensor:
        """Latents ``(B, C, H, W)``."""
        if self.role == "student" or self.renoised:
            return pipeline.student(network, encoded, self.steps)
        if self.name == REFERENCE:  # along its own schedule, guided or not
            return pipeline.teacher(network, encoded, self.steps, self.guidance)
        return pipeline.undistilled(network, encoded, self.steps)


def teachers(config: Config) -> list[Entrant]:
    """The guided teacher, then the undistilled one in every number of the student's steps: by Euler's method, and as
    the student is sampled. In one step both are the same."""
    s = config.synthesis
    label = f"teacher, {_steps(s.steps)}, guidance {s.guidance:g}"
    found = [Entrant(REFERENCE, label, "teacher", s.steps, s.guidance)]
    for n in config.method.step_counts:
        found.append(Entrant(f"teacher_{n}", f"teacher, {_steps(n)}", "teacher", n, 1.0))
        if n > 1:
            label = f"teacher, {_steps(n)}, renoised"
            found.append(Entrant(f"teacher_{n}_renoised", label, "teacher", n, 1.0, renoised=True))
    return found


def students(config: Config) -> list[Entrant]:
    """The student in every number of its steps, the most first."""
    return [Entrant(f"student_{n}", f"student, {_steps(n)}", "student", n, 1.0) for n in config.method.step_counts]


@dataclass(frozen=True)
class Rivals:
    """The undistilled teachers of a student's steps, by name; None where there is none."""

    euler: str | None = None
    renoised: str | None = None


def rivals(config: Config) -> dict[str, Rivals]:
    """Of each student."""
    undistilled = [entrant for entrant in teachers(config) if entrant.name != REFERENCE]

    def of(steps: int, renoised: bool) -> str | None:
        return next((e.name for e in undistilled if (e.steps, e.renoised) == (steps, renoised)), None)

    return {e.name: Rivals(of(e.steps, False), of(e.steps, True)) for e in students(config)}


def _steps(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)
