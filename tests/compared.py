"""Pictures of several models for tests of the human comparison, and raters who answer for sure."""

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ladd_dist.drawing.pictures import save_png
from ladd_dist.human.page import KEY
from ladd_dist.human.trials import Key, Trial, read_key

Request = tuple[str, str, int]
"""Prompt, size and seed."""


def write_set(folder: Path, red: float, requests: Sequence[Request], suffix: str = "") -> Path:
    """Noise in a model's own shade of red, written as samples are."""
    for number, (prompt, size, seed) in enumerate(requests):
        height, width = map(int, size.split("x"))
        picture = torch.from_numpy(np.random.default_rng(seed).random((3, height, width), dtype=np.float32))
        picture[0] = red
        settings = {"prompt": prompt, "seed": str(seed), "size": size, "network": folder.name, "steps": "4"}
        save_png(picture, folder / f"{size}-{number:02d}{suffix}.png", settings)
    return folder


def make_page(out: Path, *sets: str) -> Key:
    """A page and its key, by the launcher."""
    run_launcher("page.py", *(word for given in sets for word in ("--set", given)), "--out", str(out))
    return read_key(out / KEY)


def run_launcher(name: str, *args: str) -> None:
    """One of launchers/human/, in this process.

    Raises:
        SystemExit: if it ends with an error.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"launchers/human/{name}", *args])
        runpy.run_path(f"launchers/human/{name}", run_name="__main__")


def save_answers(path: Path, key: Key, rater: str, choose: Callable[[Trial], str | None], **changed: object) -> Path:
    """A file as the page saves it; None answers nothing."""
    chosen = {trial.id: choice for trial in key.trials if (choice := choose(trial))}
    answers = {"format": "picture comparison answers", "version": 1, "page": key.page, "rater": rater}
    path.write_text(json.dumps({**answers, "answers": chosen, **changed}))
    return path


def prefers(model: str) -> Callable[[Trial], str | None]:
    """A rater who sees through it: always that model's picture, and no difference where it has none."""
    return lambda trial: {trial.left: "left", trial.right: "right"}.get(model, "tie")
