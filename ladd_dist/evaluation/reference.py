"""A reference set: a folder of pictures, such as photographs, that all sets are also held against."""

from pathlib import Path

import torch
from PIL import ExifTags, Image

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, nearest
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pictures import fit_picture, open_picture
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.drawn import Collected, Rows
from ladd_dist.evaluation.judges import Judge

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}

Listed = list[tuple[Path, Bucket]]
"""Files, and the bucket that each goes to."""


def list_reference(config: Config) -> Listed:
    """The pictures of ``evaluation.reference``, each for the bucket of the nearest aspect ratio; none without it.

    Raises:
        LaddError: if there is no such folder, it holds fewer than two, or one has no size.
    """
    if (name := config.evaluation.reference) is None:
        return []
    folder, buckets = Path(name), [Bucket.parse(bucket) for bucket in config.synthesis.buckets]
    if not folder.is_dir():
        raise LaddError(f"evaluation.reference={folder}: there is no such folder: put pictures there, or set null")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())
    if len(files) < 2:
        raise LaddError(f"evaluation.reference={folder} holds {len(files)} pictures: it must be two or more")
    return [(file, nearest(*_size(file), buckets)) for file in files]


def look_at_reference(listed: Listed, judge: Judge | None, batch: int, world: World) -> dict[str, Rows]:
    """The judge's features of the pictures, fitted into their buckets, by bucket; a share read on each rank.

    Without a judge there are none: the teacher's features would take prompts.

    Raises:
        LaddError: on all ranks, if a picture cannot be read.
    """
    if judge is None:
        return {}
    batches = _batches(listed, batch)[world.rank :: world.size]
    return world.together(lambda: _look(batches, judge)).over(world)


_Batch = tuple[Bucket, list[tuple[int, Path]]]
"""Numbered files of one bucket."""


def _batches(listed: Listed, size: int) -> list[_Batch]:
    """Whatever the number of ranks: what is found in a picture may depend on its batch, by rounding."""
    found: list[_Batch] = []
    for bucket in dict.fromkeys(bucket for _, bucket in listed):
        files = [(number, file) for number, (file, of) in enumerate(listed) if of == bucket]
        found += [(bucket, files[start : start + size]) for start in range(0, len(files), size)]
    return found


def _look(batches: list[_Batch], judge: Judge) -> Collected:
    found = Collected()
    for bucket, files in batches:
        numbers, pictures = zip(*files, strict=True)
        images = torch.stack([fit_picture(open_picture(file), bucket) for file in pictures])
        found.add(bucket.name, list(numbers), judge.features(images))
    return found


def _size(file: Path) -> tuple[int, int]:
    """Height and width, from the file's head, turned as its EXIF says."""
    try:
        with Image.open(file) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except Exception as error:  # Pillow's formats raise whatever they meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LaddError(f"picture {file} cannot be read ({reason}): remove it, or save it again") from None
