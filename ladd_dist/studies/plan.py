"""Which runs a study has, and the launchers' command lines that make them, one after the other."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ladd_dist.config import Config, load
from ladd_dist.data.mds import MANIFEST
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.places import BASELINES, FOLDER, RESULTS
from ladd_dist.files.checksums import sha256
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.studies.study import Study, folder_of

STUDIES = "studies"
"""Folder in the base configuration's ``run_dir``; latents and runs of all its studies lie there, too."""
_RUNS = "runs"
_DATA = "data.path="
_ALONE = ["tracking.page_every=0", "tracking.wandb='off'", "train.preview_every=0"]
"""Of a run among many: nobody looks at it while it trains."""

Content = Callable[[str], str]
"""What identifies the content of a prompt list, or of a network's folder."""


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
    """One training and its evaluation.

    Attributes:
        folder: where it lies, by its settings: studies of one configuration share the runs that they have in common.
        link: how its own study calls it.
    """

    variant: str
    seed: int
    folder: Path
    link: Path
    task: Task

    def show(self) -> None:
        """Make the link, and in the run's folder one to the baselines that all runs share.

        Raises:
            LaddError: if something else lies there.
        """
        shared, mine = self.folder.parent.with_name(BASELINES), self.folder / BASELINES
        shared.mkdir(parents=True, exist_ok=True)
        if not mine.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            mine.symlink_to(os.path.relpath(shared, self.folder))
        if self.link.exists() and not self.link.is_symlink():
            raise LaddError(f"{self.link} is in the way of a link to {self.folder}: move it away, or set run_dir")
        self.link.parent.mkdir(parents=True, exist_ok=True)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.path.relpath(self.folder, self.link.parent))


def plan(study: Study, base: Path, given: Sequence[str], folder: Path, launchers: Path) -> list[Run]:
    """Every run of a study: first all variants of the first seed.

    Args:
        base: the configuration that is varied.
        given: overrides of the command line: they win over the study's, variants win over them.
        folder: the study's own.

    Raises:
        LaddError: naming the variant whose settings cannot be used, or are those of another; the file that cannot be
            read; or a ``data.path`` of all variants.
    """
    for path in (override for override in [*study.overrides, *given] if override.startswith(_DATA)):
        raise LaddError(
            f"{path} would hold for every run, but a study draws latents by the settings of each variant: set it in "
            "variants, or leave it out"
        )
    runs, latents = dict[Path, Run](), dict[Path, Task]()
    content = cache(_content)  # reading tens of GB takes seconds, and there may be hundreds of runs
    for seed in study.seeds:
        for variant, changed in study.variants.items():
            settings = [*study.overrides, *given, *changed, *_ALONE]
            drawn = _load(base, settings, variant)
            needed = None
            if not any(override.startswith(_DATA) for override in changed):
                data = folder.parent / f"latents-{_digest_of_latents(drawn, content)}"
                settings += [f"{_DATA}{json.dumps(str(data))}"]
                draw = _command(launchers, "synthesize", base, [*settings, f"run_dir={json.dumps(str(folder))}"])
                needed = latents.setdefault(data, Task(data.name, (draw,), data / MANIFEST, data.with_suffix(".log")))
            settings += [f"seed={seed}", f"data.shuffle_seed={seed}"]
            mine = folder.parent / _RUNS / _digest_of_run(_load(base, settings, variant), needed, content)
            if mine in runs:
                raise LaddError(f"variants '{runs[mine].variant}' and '{variant}' have the same settings: drop one")
            settings += [f"run_dir={json.dumps(str(mine))}"]
            commands = tuple(_command(launchers, launcher, base, settings) for launcher in ("train", "evaluate"))
            name = f"{folder_of(variant)}-seed{seed}"
            task = Task(name, commands, mine / FOLDER / RESULTS, mine.with_suffix(".log"), needed)
            runs[mine] = Run(variant, seed, mine, folder / name, task)
    return list(runs.values())


def _load(base: Path, settings: list[str], variant: str) -> Config:
    try:
        return load(base, settings)
    except LaddError as error:
        raise LaddError(f"variant '{variant}': {error}") from None


def _digest_of_latents(config: Config, content: Content) -> str:
    """What the latents depend on."""
    made = {"seed": config.seed, "teacher": config.teacher.model_dump(), "synthesis": config.synthesis.model_dump()}
    read = [content(config.synthesis.prompts), content(config.teacher.path)]
    return _digest(made | {"device": config.device, "precision": config.train.precision, "read": read})


def _digest_of_run(config: Config, latents: Task | None, content: Content) -> str:
    """What a run depends on: everything but where it and the latents that were drawn for it lie."""
    made = config.model_dump(mode="json", exclude={"run_dir": True, "data": {"path"}} if latents else {"run_dir"})
    files = [config.evaluation.prompts, config.teacher.path, config.student.path]
    return _digest(made | {"latents": latents and latents.name, "read": [content(file) for file in files if file]})


def _content(path: str) -> str:
    """As of `Content`: with the same name, other content makes other results.

    Raises:
        LaddError: naming the file that cannot be read.
    """
    if Path(path).is_dir():
        return fingerprint(path)
    try:
        return sha256(Path(path))
    except OSError as error:
        raise LaddError(f"{path} cannot be read ({error.strerror})") from None


def _digest(made: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]


def _command(launchers: Path, name: str, base: Path, settings: list[str]) -> tuple[str, ...]:
    return sys.executable, str(launchers / f"{name}.py"), "--config", str(base), *settings
