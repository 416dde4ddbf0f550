"""W&B as a mirror of the record: it may fail, and the run goes on without it.

Each start of a run is a W&B run of its own, in one group for the run's folder. A run that was killed goes on from its
last checkpoint, so that its steps go back, which W&B ignores within one run; rewinding (``resume_from``) takes the
server, which an offline run has not got.
"""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ladd_dist.config import Config
from ladd_dist.log import warn

_GROUP = "wandb_run_id"
"""File of the run's folder that names its group; once the single W&B run's id."""
_SERVICE_WAIT = 300.0
"""Seconds that W&B's own process may take to start; the 30 by default are short on a node where all ranks start."""
_FINISH_WAIT = 60.0
"""Seconds that the end of a run waits for W&B's server; by default it does so for as long as that is away, while a
scheduler that has asked to stop waits for the run. What was not sent stays on disk for ``wandb sync``."""


class Mirror:
    """Sends the record to W&B from rank 0. The first failure is one warning, and nothing is sent after it.

    Args:
        iteration: iterations finished before.
    """

    def __init__(self, config: Config, folder: Path, iteration: int) -> None:
        self._run: Any = None
        if config.tracking.wandb != "off":
            self._try("start", lambda: self._start(config, folder, iteration))

    def write(self, values: dict[str, Any], iteration: int) -> None:
        """Numbers of an iteration, one per name."""
        if self._run is not None:
            self._try("take a row", lambda: self._run.log(values, step=iteration))

    def pictures(self, iteration: int, paths: Mapping[str, Path]) -> None:
        """Picture files of an iteration by name, such as ``preview/32x64``."""
        if self._run is not None:
            import wandb

            def send() -> None:
                self._run.log({name: wandb.Image(str(path)) for name, path in paths.items()}, step=iteration)

            self._try("take a picture", send)

    def close(self) -> None:
        """Finish."""
        if self._run is not None:
            self._try("finish", lambda: self._run.finish())

    def _start(self, config: Config, folder: Path, iteration: int) -> None:
        import wandb

        record = folder / _GROUP
        if not record.is_file():
            record.write_text(secrets.token_hex(4), encoding="utf-8")
        group = record.read_text(encoding="utf-8").strip()
        self._run = wandb.init(
            project=config.tracking.project,
            mode=config.tracking.wandb,  # type: ignore[arg-type]
            id=f"{group}-{secrets.token_hex(4)}",
            group=group,
            name=f"{folder.absolute().name} from {iteration}",
            dir=str(folder),
            config=config.model_dump(),
            settings=wandb.Settings(
                x_service_wait=_SERVICE_WAIT, finish_timeout=_FINISH_WAIT, finish_timeout_raises=True
            ),
        )

    def _try(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of any kind: it is no part of the run
            self._run = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warn(f"W&B could not {what} ({reason}): the run goes on without it, metrics.jsonl has everything")
