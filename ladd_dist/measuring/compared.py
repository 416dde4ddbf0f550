"""One of the two runs of a comparison: the real launcher, with the code of a commit or of the working tree.

Both run in the caller's working directory, so that a relative path in the configuration names the same
teacher and the same dataset for both. Only the code comes from a run's own tree.
"""

import json
import os
import random
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ladd_dist.data.mds import Manifest
from ladd_dist.engines.entry import Launcher
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import LaddError

# Each run's own code reads its configuration: what keys there are may differ between commits.
_RESOLVE = """
import sys
from ladd_dist.config import load
from ladd_dist.errors import LaddError
try:
    from ladd_dist.engines.settings import check_settings
except ImportError:  # an older commit, whose load() does that too
    def check_settings(config): pass
try:
    config = load(sys.argv[1], sys.argv[2:])
    check_settings(config)
    sys.stdout.buffer.write(config.model_dump_json().encode())
except LaddError as error:
    sys.exit(str(error))
"""
_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Resolved = dict[str, Any]
"""A whole configuration as its commit knows it."""


@dataclass(frozen=True)
class ComparedRun:
    """A training to run.

    Attributes:
        name: ``left`` or ``right``.
        commit: where the code in ``tree`` is from; None for the working tree.
        config: the YAML file.
        overrides: everything that is set on top of it.
        ranks: processes on this machine.
    """

    name: str
    commit: str | None
    tree: Path
    config: str
    overrides: list[str]
    ranks: int

    def check(self) -> Resolved:
        """Have the run's own code validate its configuration, and look for the dataset and the engine's launcher.

        Raises:
            LaddError: naming the run and what is wrong with it.
        """
        # -P: the working directory must not come before the run's own tree.
        command = [sys.executable, "-P", "-c", _RESOLVE, self.config, *self.overrides]
        done = subprocess.run(  # noqa: S603 - no shell
            command, env=self._environment(), capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            raise LaddError(f"{self.name}: {done.stderr.strip().splitlines()[-1]}")
        config = json.loads(done.stdout)
        try:
            if engine_entry(config["engine"]).launcher == "python" and self.ranks > 1:
                raise LaddError(f"engine={config['engine']} runs in one process: set --{self.name}-ranks 1")
            Manifest.read(config["data"]["path"])
        except LaddError as error:
            raise LaddError(f"{self.name}: {error}") from None
        return dict(config)

    def train(self, config: Resolved) -> None:
        """Run to the end and pass the output on to stderr, line by line under the run's name.

        Raises:
            LaddError: if the training fails, with the reason that it gave.
        """
        training = [str(self.tree / "launchers/train.py"), "--config", self.config, *self.overrides]
        command, env = [*_starter(config["engine"], self.ranks), *training], self._environment()
        if config["device"] == "cpu" or not torch.cuda.is_available():
            env["DS_ACCELERATOR"] = "cpu"  # the deepspeed launcher counts accelerators before our code runs
        reason = "see its last lines above"
        with subprocess.Popen(  # noqa: S603 - no shell
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",  # as text: each redraw of a bar is a line, too
            errors="replace",
        ) as process:
            try:
                for line in filter(str.strip, process.stdout or []):
                    print(f"{self.name:>5} | {line.rstrip()}", file=sys.stderr, flush=True)
                    if line.startswith("error: "):
                        reason = line.removeprefix("error: ").strip()
            except BaseException:
                process.terminate()  # torchrun and deepspeed end their ranks
                raise
        if process.returncode:
            raise LaddError(f"{self.name} ended with code {process.returncode}: {reason}")

    def _environment(self) -> dict[str, str]:
        """Imports come from the run's tree first; no trace of a process group that we may be part of."""
        kept = {key: value for key, value in os.environ.items() if key not in _GROUP}
        return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.tree), kept.get("PYTHONPATH")]))}

    def __str__(self) -> str:
        code = f"commit {self.commit}" if self.commit else "working tree"
        return f"{self.name}: {code}, {self.ranks} rank{'s' * (self.ranks > 1)}"


def split_overrides(name: str, text: str, taken: set[str]) -> list[str]:
    """``"engine=fsdp2 student.path='a b'"`` as single overrides.

    Args:
        name: the run, for the message.
        taken: keys that the comparison itself sets.

    Raises:
        LaddError: for unbalanced quotes and for a key that is taken.
    """
    try:
        overrides = shlex.split(text)
    except ValueError as error:
        raise LaddError(f"--{name} '{text}' cannot be split into overrides: {error}") from None
    if used := [o for o in overrides if o.partition("=")[0] in taken]:
        raise LaddError(f"--{name} has '{used[0]}', which the comparison sets itself: leave it out (--steps, --keep)")
    return overrides


def _starter(engine: str, ranks: int) -> list[str]:
    """The command that starts ``ranks`` processes of a program under an engine."""
    return [sys.executable, *_LAUNCHERS[engine_entry(engine).launcher](ranks)]


_LAUNCHERS: dict[Launcher, Callable[[int], list[str]]] = {
    "python": lambda ranks: [],
    "torchrun": lambda ranks: ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"],
    "deepspeed": lambda ranks: [
        *("-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)),
        *("--master_port", str(free_port())),
    ],
}


def free_port() -> int:
    """A TCP port that nobody listens on, below those that Linux by default hands out to others in the meantime."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
