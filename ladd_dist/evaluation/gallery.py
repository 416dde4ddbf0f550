"""The pictures that a report shows: the first prompts of every bucket, the same noise for all entrants."""

from pathlib import Path

from torch import Tensor

from ladd_dist.data.prompts import PromptEntry
from ladd_dist.drawing.pictures import save_png
from ladd_dist.evaluation.places import INDEX
from ladd_dist.evaluation.results import PictureIndex
from ladd_dist.files.disk import whole


class Gallery:
    """Keeps the first pictures of every bucket, the same prompts and noise for all entrants.

    Args:
        count: pictures per bucket.
        entries: all that will be drawn.
    """

    def __init__(self, count: int, entries: list[PromptEntry]) -> None:
        self._places: dict[int, tuple[str, int]] = {}
        self._prompts: dict[str, list[str]] = {}
        for entry in entries:
            prompts = self._prompts.setdefault(entry.bucket.name, [])
            if len(prompts) < count and entry.prompt not in prompts:
                self._places[entry.id] = (entry.bucket.name, len(prompts))
                prompts.append(entry.prompt)

    def keep(self, folder: Path, rows: list[PromptEntry], images: Tensor) -> None:
        """Save those of an entrant's pictures ``(B, 3, H, W)`` that are shown in its folder."""
        for row, image in zip(rows, images, strict=True):
            if row.id in self._places:
                bucket, number = self._places[row.id]
                with whole(folder / bucket / f"{number:02d}.png") as file:
                    save_png(image, file)

    def write_index(self, folder: Path, names: list[str]) -> None:
        """Write ``index.json`` of the entrants' folders, in the order given."""
        index = PictureIndex(sets=names, buckets=self._prompts)
        (folder / INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")
