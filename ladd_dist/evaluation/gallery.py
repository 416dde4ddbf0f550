"""The pictures that a report shows: the first prompts of every bucket, the same noise for all entrants."""

from collections.abc import Iterable
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
                with whole(self._file(folder, row.id)) as file:
                    save_png(image, file)

    def has(self, folder: Path, numbers: Iterable[int]) -> bool:
        """Whether an entrant's folder has all those of some pictures that are shown."""
        return all(self._file(folder, number).is_file() for number in numbers if number in self._places)

    def write_index(self, folder: Path, names: list[str]) -> None:
        """Write ``index.json`` of the entrants' folders, in the order given."""
        index = PictureIndex(sets=names, buckets=self._prompts)
        (folder / INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _file(self, folder: Path, number: int) -> Path:
        bucket, place = self._places[number]
        return folder / bucket / f"{place:02d}.png"
