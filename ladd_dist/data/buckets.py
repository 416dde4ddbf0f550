"""Aspect-ratio buckets: picture sizes of about one area, one stream of samples each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.errors import LaddError
from ladd_dist.models.family import TokenGrid
from ladd_dist.models.registry import family_of


@dataclass(frozen=True)
class Bucket:
    """A picture size in pixels. Named ``HEIGHTxWIDTH``."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """``HEIGHTxWIDTH``: the stream's folder and the value of the ``bucket`` field."""
        return f"{self.height}x{self.width}"

    @staticmethod
    def parse(name: str) -> "Bucket":
        """Read a name.

        Raises:
            LaddError: if it is not ``HEIGHTxWIDTH``.
        """
        height, _, width = name.partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            raise LaddError(f"bucket '{name}' is not of the form HEIGHTxWIDTH in pixels, such as 1024x1024")
        return Bucket(int(height), int(width))


def nearest(height: int, width: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose aspect ratio is nearest to a picture's, as a factor; of equals the first."""
    return min(buckets, key=lambda bucket: abs(math.log(bucket.height * width / (bucket.width * height))))


@dataclass(frozen=True)
class LatentSpace:
    """What a teacher's latents look like: channels, and sizes of each bucket in positions and tokens."""

    channels: int
    factor: int
    grid: TokenGrid
    """The teacher's token grid of a latent of so many rows and columns."""
    student: TokenGrid | None = None
    """The student's if it has one of its own: every bucket must fit it, too."""

    @staticmethod
    def of(folder: str | Path, student: str | Path | None = None) -> "LatentSpace":
        """Read the configs of a teacher's diffusers folder and, if given, of a student's."""
        family = family_of(folder)
        grid = family.token_grid(folder, "teacher")
        return LatentSpace(
            *family.latent_space(folder), grid, family_of(student).token_grid(student, "student") if student else None
        )

    def shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """Latent shape ``(C, H, W)`` of a bucket.

        Raises:
            LaddError: if the bucket does not divide into latent positions and patches, or exceeds a position table.
        """
        if bucket.height % self.factor or bucket.width % self.factor:
            raise LaddError(f"bucket {bucket.name}: height and width must be multiples of {self.factor}")
        height, width = bucket.height // self.factor, bucket.width // self.factor
        try:
            self.grid(height, width)
            if self.student:
                self.student(height, width)
        except LaddError as error:
            raise LaddError(f"bucket {bucket.name}: {error}") from None
        return self.channels, height, width
