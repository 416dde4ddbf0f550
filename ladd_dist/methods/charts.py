"""Charts as data: what a method's metrics are called and how they belong together. `report` draws them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """One metric over iterations."""

    metric: str
    of: Literal["student", "data", "other"]
    """Whose it is, which gives the colour: the student and its samples; teacher, data and most else; or neither."""
    label: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Band:
    """Where the curves of a healthy run stay, in the panel's units, and what it means to leave it at either end."""

    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True)
class Panel:
    """Axes of their own.

    Attributes:
        curves: those whose metric no row has are left out.
        level: a value with a meaning, and the meaning.
        band: shaded; a curve that has left it lately is named on the page.
        by_block: metrics with an entry for each of `Method.blocks`: a line for each, shaded by the block's depth.
        log: logarithmic axis.
        percent: an axis from 0 to 100.
    """

    title: str
    curves: tuple[Curve, ...]
    level: tuple[float, str] | None = None
    band: Band | None = None
    by_block: bool = False
    log: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure of two panels over the same iterations.

    Attributes:
        name: of its file, without the ending.
        shows: what it shows, for those who cannot see it.
        caption: what it means.
    """

    name: str
    top: Panel
    bottom: Panel
    shows: str
    caption: str

    @property
    def panels(self) -> tuple[Panel, Panel]:
        """From above."""
        return self.top, self.bottom
