"""The page that asks: one file with all pictures in it, which does not say who drew them."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from ladd_dist.drawing.pictures import open_picture
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.human.sets import PictureSet
from ladd_dist.human.trials import KEY, Key
from ladd_dist.report.style import data_uri, environment, source_hash

PAGE = "page.html"
_KIND = "comparison"
_TEMPLATES = Path(__file__).parent / "templates"
_TINY, _LONGEST = 256, 1536
"""Longest sides in pixels: up to the first nothing is lost, above the second pictures are reduced."""


def check_place(folder: Path, overwrite: bool) -> None:
    """See that `write_page` may write there.

    Raises:
        LaddError: if something else is there, or an earlier page and ``overwrite`` is not set.
    """
    check_replaceable(folder, _KIND, overwrite)


def write_page(
    key: Key, sets: Sequence[PictureSet], folder: Path, overwrite: bool, done: Callable[[], object]
) -> Path:
    """Write ``page.html``, which goes to raters, and ``key.json``, which does not.

    Args:
        folder: a `real_path`.
        done: is called after each of `shown`.

    Returns:
        The page.

    Raises:
        LaddError: as `check_place`, or if a picture cannot be read any more.
    """
    style = environment(_TEMPLATES).get_template("page.css").render()
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    page = environment(_TEMPLATES).get_template("page.html")
    with replacing(folder, _KIND, overwrite) as new:
        (new / KEY).write_text(key.model_dump_json(indent=1) + "\n", encoding="utf-8")
        page.stream(
            style=Markup(style),  # noqa: S704 -- both are ours
            script=Markup(script),  # noqa: S704
            hashes={"style": source_hash(style), "script": source_hash(script)},
            data=_inert(_data(key)),
            pictures=_pictures(shown(key, sets), done),
        ).dump(str(new / PAGE), encoding="utf-8")
    return folder / PAGE


def _data(key: Key) -> dict[str, object]:
    """What the page knows. A prompt is not even there while the pictures themselves are judged."""
    trials = [
        {
            "id": trial.id,
            "question": trial.question,
            "left": key.picture(trial.left, trial.request),
            "right": key.picture(trial.right, trial.request),
            "prompt": trial.prompt if trial.question == "alignment" else None,
        }
        for trial in key.trials
    ]
    return {"page": key.page, "trials": trials}


def shown(key: Key, sets: Sequence[PictureSet]) -> dict[str, Path]:
    """Files of the page's pictures by their names in it, in the order of these, which tells nothing."""
    asked = {(model, trial.request) for trial in key.trials for model in (trial.left, trial.right)}
    files = {key.picture(s.name, r): p.path for s in sets for r, p in s.pictures.items() if (s.name, r) in asked}
    return dict(sorted(files.items()))


def _pictures(files: Mapping[str, Path], done: Callable[[], object]) -> Iterator[tuple[str, str]]:
    for name, path in files.items():
        yield name, _address(path)
        done()


def _address(path: Path) -> str:
    """A picture in the one format that all of its size have, without what its file says besides."""
    picture, data = Image.fromarray(np.array(open_picture(path))), io.BytesIO()
    if max(picture.size) <= _TINY:
        picture.save(data, "PNG", optimize=True)
        return data_uri("png", data.getvalue())
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    picture.save(data, "WEBP", quality=90)
    return data_uri("webp", data.getvalue())


def _inert(data: object) -> Markup:
    """JSON for a script element: with no ``<`` in it, no text of a user can end the element."""
    return Markup(json.dumps(data).replace("<", "\\u003c"))  # noqa: S704
