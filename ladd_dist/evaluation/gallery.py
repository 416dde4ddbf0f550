"""The pictures that a report shows: the first prompts of every bucket, the same noise for all entrants."""

from pathlib import Path

from torch import Tensor

from ladd_dist.data.prompts import PromptEntry
from ladd_dist.drawing.pictures import save_png
from ladd_dist.evaluation.places import INDEX
from ladd_dist.evaluation.results import PictureIndex


class Gallery:
    """Keeps the first pictures of every bucket, the same prompts and noise for all entrants.

    Args:
        root: an evaluation's folder of pictures.
        count: pictures per bucket.
        entries: all that will be drawn.
    """

    def __init__(self, root: Path, count: int, entries: list[PromptEntry]) -> None:
        self._root = root
        self._places: dict[int, tuple[str, int]] = {}
        self._prompts: dict[str, list[str]] = {}
        for entry in entries:
            prompts = self._prompts.setdefault(entry.bucket.name, [])
            if len(prompts) < count and entry.prompt not in prompts:
                self._places[entry.id] = (entry.bucket.name, len(prompts))
                prompts.append(entry.prompt)

    def keep(self, name: str, rows: list[PromptEntry], images: Tensor) -> None:
        """Save those of an entrant's pictures ``(B, 3, H, W)`` that are shown."""
        for row, image in zip(rows, images, strict=True):
            if row.id in self._places:
                bucket, number = self._places[row.id]
                save_png(image, self._root / name / bucket / f"{number:02d}.png")

    def write_index(self, names: list[str]) -> None:
        """Write ``index.json``, the entrants in the order given."""
        index = PictureIndex(sets=names, buckets=self._prompts)
        (self._root / INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")
