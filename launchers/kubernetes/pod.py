"""What runs in a pod: this node's ranks under torchrun, whose ends become the pod's exit code."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ladd_dist.checkpoints.folders import newest_iteration
from ladd_dist.errors import EXIT_PEER_LOST, EXIT_REQUEUE
from ladd_dist.supervision import exits

_DESCRIPTION = """\
The main process of the pods that launchers/kubernetes/render.py describes. torchrun, which it starts, ends with 1
whatever its ranks end with; this ends as they do. torchrun has its own settings from PET_NNODES, PET_NODE_RANK and
their like.

  python launchers/kubernetes/pod.py --run-dir /runs/sd35 launchers/train.py --config /etc/ladd_dist/config.yaml
"""
_TERMINATION_LOG = Path("/dev/termination-log")
"""A file of the kubelet's, whose content `kubectl describe pod` shows."""


def main(run_dir: Path, command: list[str]) -> int:
    """Run the command's ranks to their end; returns the exit code."""
    saved = newest_iteration(run_dir)
    ranks = _Ranks(command)
    ends, code = ranks.wait()
    if code == EXIT_PEER_LOST and newest_iteration(run_dir) > saved:
        code = EXIT_REQUEUE  # losses that a run outlives are not to be counted against it
    if ranks.stopped and not ends:
        code = EXIT_REQUEUE  # before the first of them was there to say so
    if code:
        _tell(f"exit code {code}: {exits.reason(ends) or 'the ranks do not say why'}")
    return code


class _Ranks:
    """torchrun and what it starts. SIGTERM, by which Kubernetes ends a pod, is handed on."""

    def __init__(self, command: list[str]) -> None:
        self.stopped = False
        self._torchrun: subprocess.Popen | None = None
        self._command = [sys.executable, "-m", "torch.distributed.run", *command]
        signal.signal(signal.SIGTERM, self._stop)  # else the first process of a pod does not hear it

    def wait(self) -> tuple[list[exits.Exit], int]:
        """How the ranks end, each and all together."""
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {exits.VARIABLE: folder}
            self._torchrun = subprocess.Popen(self._command, env=environment)  # noqa: S603 - no shell
            if self.stopped:
                self._torchrun.terminate()
            code = self._torchrun.wait()
            ends = exits.read(Path(folder))
        return ends, exits.exit_code(ends, code if code >= 0 else 128 - code)

    def _stop(self, *_: int | FrameType | None) -> None:
        self.stopped = True
        if self._torchrun is not None:
            self._torchrun.terminate()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    with suppress(OSError):
        if _TERMINATION_LOG.exists():
            _TERMINATION_LOG.write_text(line, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.exit(main(args.run_dir, args.command))
