"""Pictures of several models, and which pictures of two models were drawn for the same request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.drawing.pictures import open_picture
from ladd_dist.drawing.samples import SHEET
from ladd_dist.errors import LaddError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_SETTINGS = ("prompt", "size", "seed")
"""What of a sample's text chunks says for which request it was drawn."""


@dataclass(frozen=True)
class Picture:
    """A picture file. ``settings`` are prompt, size and seed, if the file says all three."""

    path: Path
    prompt: str | None
    settings: tuple[str, ...] | None


@dataclass(frozen=True)
class PictureSet:
    """One model's pictures, by what those of other models are matched with: each request once."""

    name: str
    place: str
    pictures: dict[str, Picture]


def read_sets(given: Sequence[str]) -> list[PictureSet]:
    """Read sets of pictures, matched by prompt, size and seed if every file says them, else by file name.

    Args:
        given: ``NAME=FOLDER`` each, or ``NAME=PATTERN`` for some files of a folder.

    Raises:
        LaddError: if there are fewer than two, or names, folders or pictures cannot be used.
    """
    places = _places(given)
    found = {name: [_read(path) for path in _files(name, place)] for name, place in places.items()}
    unsaid = [picture for pictures in found.values() for picture in pictures if picture.settings is None]
    sets = []
    for name, pictures in found.items():
        by_request: dict[str, Picture] = {}
        for picture in pictures:
            request = picture.path.stem if unsaid or picture.settings is None else ", ".join(picture.settings)
            if other := by_request.get(request):
                what = "have one name" if unsaid else "were drawn with one prompt, size and seed"
                raise LaddError(
                    f"--set {name}: {other.path} and {picture.path} {what}: leave one out, or choose files by a "
                    f"pattern such as --set '{name}={picture.path.parent}/*{picture.path.suffix}'"
                )
            by_request[request] = picture
        sets.append(PictureSet(name, places[name], by_request))
    return sets


def how_matched(sets: Sequence[PictureSet]) -> str:
    """A line that says by what pictures of different sets are matched, and why."""
    for pictures in sets:
        for picture in pictures.pictures.values():
            if picture.settings is None:
                return f"matched by file name, for {picture.path} does not say its prompt, size and seed"
    return "matched by prompt, size and seed"


def _places(given: Sequence[str]) -> dict[str, str]:
    places: dict[str, str] = {}
    for argument in given:
        name, _, place = argument.partition("=")
        if not re.fullmatch(r"\S(.*\S)?", name) or not place:
            raise LaddError(f"--set {argument} is not NAME=FOLDER: name the model whose pictures the folder holds")
        if name in places:
            raise LaddError(f"--set {name} is given twice: give every model a name of its own")
        places[name] = place
    if len(places) < 2:
        raise LaddError(f"{len(places)} --set given: a comparison needs two models or more")
    return places


def _files(name: str, place: str) -> list[Path]:
    folder, pattern = Path(place).expanduser(), "*"
    if not folder.is_dir():
        folder, pattern = folder.parent, folder.name
    if not folder.is_dir():
        raise LaddError(f"--set {name}={place}: there is no folder {folder}")
    files = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in _SUFFIXES and path.name != SHEET)
    if not files:
        raise LaddError(f"--set {name}={place}: no .png, .jpg or .webp is there: draw some with launchers/sample.py")
    return files


def _read(path: Path) -> Picture:
    info = open_picture(path).info
    texts = [info[key] for key in _SETTINGS if isinstance(info.get(key), str)]
    prompt = info.get("prompt")
    return Picture(
        path, prompt if isinstance(prompt, str) else None, tuple(texts) if len(texts) == len(_SETTINGS) else None
    )
