"""Aspect-ratio buckets: picture sizes of about one area, each a stream of its own."""

from dataclasses import dataclass
from pathlib import Path

from ladd_dist.errors import LaddError
from ladd_dist.models.transformer import load_config, token_grid
from ladd_dist.models.vae import latent_factor


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


@dataclass(frozen=True)
class LatentSpace:
    """What a teacher's latents look like: channels, and sizes of each bucket in positions and tokens."""

    channels: int
    factor: int
    transformer: dict

    @staticmethod
    def of(folder: str | Path) -> "LatentSpace":
        """Read a diffusers folder's configs."""
        config = load_config(folder)
        return LatentSpace(config["in_channels"], latent_factor(folder), config)

    def shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """Latent shape ``(C, H, W)`` of a bucket.

        Raises:
            LaddError: if the bucket does not divide into latent positions and patches.
        """
        if bucket.height % self.factor or bucket.width % self.factor:
            raise LaddError(f"bucket {bucket.name}: height and width must be multiples of {self.factor}")
        height, width = bucket.height // self.factor, bucket.width // self.factor
        self.grid(height, width)
        return self.channels, height, width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid of a latent of ``height x width`` positions."""
        return token_grid(self.transformer, height, width)
