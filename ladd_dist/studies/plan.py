"""Which runs a study has, and the launchers' command lines that make them, one after the other."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladd_dist.config import Config, load
from ladd_dist.data.mds import MANIFEST
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.places import FOLDER, RESULTS
from ladd_dist.studies.study import Study, folder_of

STUDIES = "studies"
"""Folder in the base configuration's ``run_dir``; the latents of all its studies lie there, too."""
_ALONE = ["tracking.page_every=0", "tracking.wandb='off'", "train.preview_every=0"]
"""Of a run among many: nobody looks at it while it trains."""


@dataclass(frozen=True)
class Task:
    """Processes to run one after the other.

    Attributes:
        done: the file that is there when all of them have ended well.
        log: what they say.
        needs: the task that must be done before.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    done: Path
    log: Path
    needs: "Task | None" = None


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    variant: str
    seed: int
    folder: Path
    task: Task


def plan(study: Study, base: Path, given: Sequence[str], folder: Path, launchers: Path) -> list[Run]:
    """Every run of a study: first all variants of the first seed.

    Args:
        base: the configuration that is varied.
        given: overrides of the command line: they win over the study's, variants win over them.
        folder: the study's own.

    Raises:
        LaddError: naming the variant whose settings cannot be used, or whose folder holds a run with other ones.
    """
    runs, latents = [], dict[Path, Task]()
    for seed in study.seeds:
        for variant, changed in study.variants.items():
            settings = [*study.overrides, *given, *changed, *_ALONE]
            drawn = _load(base, settings, variant)
            needed = None
            if not any(override.startswith("data.path=") for override in changed):
                data = folder.parent / f"latents-{_digest(drawn)}"
                settings += [f"data.path={json.dumps(str(data))}"]
                draw = _command(launchers, "synthesize", base, [*settings, f"run_dir={json.dumps(str(folder))}"])
                needed = latents.setdefault(data, Task(data.name, (draw,), data / MANIFEST, data.with_suffix(".log")))
            name = f"{folder_of(variant)}-seed{seed}"
            mine = folder / name
            settings += [f"seed={seed}", f"data.shuffle_seed={seed}", f"run_dir={json.dumps(str(mine))}"]
            _check_earlier(mine, _load(base, settings, variant), variant)
            commands = tuple(_command(launchers, launcher, base, settings) for launcher in ("train", "evaluate"))
            task = Task(name, commands, mine / FOLDER / RESULTS, folder / f"{name}.log", needed)
            runs.append(Run(variant, seed, mine, task))
    return runs


def _load(base: Path, settings: list[str], variant: str) -> Config:
    try:
        return load(base, settings)
    except LaddError as error:
        raise LaddError(f"variant '{variant}': {error}") from None


def _digest(config: Config) -> str:
    """What the latents depend on."""
    made = {"seed": config.seed, "teacher": config.teacher.model_dump(), "synthesis": config.synthesis.model_dump()}
    precision = {"device": config.device, "precision": config.train.precision}
    return hashlib.sha256(json.dumps(made | precision, sort_keys=True).encode()).hexdigest()[:12]


def _command(launchers: Path, name: str, base: Path, settings: list[str]) -> tuple[str, ...]:
    return sys.executable, str(launchers / f"{name}.py"), "--config", str(base), *settings


def _check_earlier(folder: Path, config: Config, variant: str) -> None:
    """A run that was begun goes on only with the settings that it was begun with."""
    if not (saved := folder / "config.yaml").is_file():
        return
    if key := _differing(load(saved).model_dump(), config.model_dump()):
        raise LaddError(
            f"{folder} holds a run of variant '{variant}' with another {key}: remove the folder, or set run_dir"
        )


def _differing(left: Any, right: Any, key: str = "") -> str:
    """The first key of two mappings whose values differ."""
    if not isinstance(left, dict) or not isinstance(right, dict):
        return key if left != right else ""
    names = [*left, *(name for name in right if name not in left)]
    found = (_differing(left.get(name), right.get(name), f"{key}.{name}".lstrip(".")) for name in names)
    return next(filter(None, found), "")
