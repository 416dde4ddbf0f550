"""Pictures to look at: drawn in batches by one network or several, and written with what they were drawn with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from ladd_dist.config.drawing import SynthesisConfig
from ladd_dist.drawing.pictures import save_png, sheet
from ladd_dist.drawing.pipeline import Encoded, Pipeline
from ladd_dist.drawing.requests import Request
from ladd_dist.drawing.sampling import VelocityNetwork

SHEET = "sheet.png"
_COLUMNS = 8


@dataclass(frozen=True)
class Artist:
    """A network that draws.

    Attributes:
        suffix: of its pictures' names.
        latents: what it makes of encoded prompts.
        settings: what it draws with, for the files' text chunks.
    """

    suffix: str
    latents: Callable[[Encoded], Tensor]
    settings: Mapping[str, str]


def student_artist(
    pipeline: Pipeline, network: VelocityNetwork, times: list[float], picture: Tensor | None, settings: dict[str, str]
) -> Artist:
    """The student at some of its times, beginning with noise or with a picture ``(1, 3, H, W)`` in [0, 1]."""

    def latents(encoded: Encoded) -> Tensor:
        if picture is None:
            return pipeline.student(network, encoded, len(times))
        return pipeline.redraw(network, encoded, picture, times)

    listed = ", ".join(f"{time:g}" for time in times)
    return Artist("", latents, {"network": "student", "steps": str(len(times)), "times": listed, **settings})


def teacher_artist(pipeline: Pipeline, network: VelocityNetwork, drawing: SynthesisConfig) -> Artist:
    """The guided teacher by its own schedule, as it draws the training set."""
    return Artist(
        "-teacher",
        lambda encoded: pipeline.teacher(network, encoded, drawing.steps, drawing.guidance),
        {"network": "teacher", "steps": str(drawing.steps), "guidance": f"{drawing.guidance:g}"},
    )


def draw(
    artist: Artist, pipeline: Pipeline, requests: Sequence[Request], batch: int, done: Callable[[int], object]
) -> list[Tensor]:
    """The pictures ``(3, H, W)`` of requests that are sorted by size, on the CPU.

    Args:
        batch: how many are drawn at a time; no picture depends on it but for rounding.
        done: gets the number of pictures of each batch.
    """
    pictures: list[Tensor] = []
    for size, same in groupby(requests, key=lambda request: request.size):
        rows = list(same)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            encoded = pipeline.encode([row.prompt for row in part], [row.seed for row in part], size)
            pictures.extend(pipeline.decode(artist.latents(encoded)).cpu())
            done(len(part))
    return pictures


def write(folder: Path, requests: Sequence[Request], drawn: Sequence[tuple[Artist, list[Tensor]]]) -> None:
    """Single PNGs, named by size and number, and a sheet: rows of one size, one artist's below the other's."""
    rows: list[list[Tensor]] = []
    for size, same in groupby(range(len(requests)), key=lambda index: requests[index].size):
        indices = list(same)
        for number, index in enumerate(indices):
            for artist, pictures in drawn:
                path = folder / f"{size.name}-{number:02d}{artist.suffix}.png"
                save_png(pictures[index], path, {**_settings(requests[index]), **artist.settings})
        for start in range(0, len(indices), _COLUMNS):
            columns = indices[start : start + _COLUMNS]
            rows.extend([pictures[index] for index in columns] for _, pictures in drawn)
    save_png(sheet(rows), folder / SHEET)


def _settings(request: Request) -> dict[str, str]:
    return {"prompt": request.prompt, "seed": str(request.seed), "size": request.size.name}
