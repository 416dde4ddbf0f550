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

from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_PEER_LOST, EXIT_REQUEUE, LaddError
from ladd_dist.jobs.saved import saved
from ladd_dist.kubernetes.finished import Mark
from ladd_dist.kubernetes.meeting import meet
from ladd_dist.supervision import exits

_DESCRIPTION = """\
The main process of the pods that launchers/kubernetes/render.py describes. Once all pods are there it starts
torchrun, which has its own settings from PET_NNODES, PET_NODE_RANK and their like. torchrun ends with 1 whatever its
ranks end with; this ends as they do.

  python launchers/kubernetes/pod.py --run-dir /runs/sd35 --data /data/sd35 --job train \
      launchers/train.py --config /etc/ladd_dist/config.yaml
"""
_TERMINATION_LOG = Path("/dev/termination-log")
"""A file of the kubelet's, whose content `kubectl describe pod` shows."""

_PLACE = ("PET_MASTER_ADDR", "PET_NODE_RANK", "PET_NNODES", "PET_MASTER_PORT")
_REASONS = {EXIT_REQUEUE: "asked to stop", EXIT_PEER_LOST: "another rank is gone"}


class Ranks:
    """torchrun and what it starts. SIGTERM, by which Kubernetes ends a pod, is handed on."""

    def __init__(self) -> None:
        self.stopped = False
        self._torchrun: subprocess.Popen | None = None
        signal.signal(signal.SIGTERM, self._stop)  # else the first process of a pod does not hear it

    def run(self, command: list[str], start: str) -> tuple[list[exits.Exit], int]:
        """How the ranks of a start end, each and all together."""
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {exits.VARIABLE: folder, "PET_RDZV_ID": start}
            torchrun = [sys.executable, "-m", "torch.distributed.run", *command]
            self._torchrun = subprocess.Popen(torchrun, env=environment)  # noqa: S603 - no shell
            code = self._torchrun.wait()
            ends = exits.read(Path(folder))
        return ends, exits.exit_code(ends, code if code >= 0 else 128 - code)

    def _stop(self, *_: int | FrameType | None) -> None:
        if self._torchrun is None:
            sys.exit(EXIT_REQUEUE)  # nothing has begun
        self.stopped = True
        self._torchrun.terminate()


def main(args: argparse.Namespace) -> int:
    """Meet the other pods and run the command's ranks to their end, unless they are done; returns the exit code."""
    ranks, mark = Ranks(), Mark(args.job, args.run_dir, args.data)
    start = _meet(mark)
    before = saved(args.job, args.run_dir, args.data)
    ends, code = ranks.run(args.command, start)
    if code == EXIT_PEER_LOST and saved(args.job, args.run_dir, args.data) > before:
        code = EXIT_REQUEUE  # a loss that the run outlives is not to be counted against it
    if ranks.stopped and not ends:
        code = EXIT_REQUEUE  # before a rank was there to say so
    if code:
        _tell(f"exit code {code}: {exits.reason(ends) or _REASONS.get(code, 'see the log')}")
    else:
        _leave(mark)
    return code


def _meet(mark: Mark) -> str:
    if missing := [name for name in _PLACE if name not in os.environ]:
        raise LaddError(
            f"{missing[0]} is not set, so this is no pod of launchers/kubernetes/render.py: start torchrun instead"
        )
    host, *numbers = (os.environ[name] for name in _PLACE)
    node, nodes, port = map(int, numbers)

    def check() -> None:
        if mark.is_there():
            _say("this Job's work is done, as another pod of it has said: nothing is left to do")
            sys.exit(0)

    return meet(node, nodes, host, port + 1, _say, check)


def _leave(mark: Mark) -> None:
    try:
        mark.leave()
    except OSError as error:
        _say(f"warning: no mark that this Job's work is done ({error}): a pod that is replaced now waits for ever")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell(line: str) -> None:
    _say(line)
    with suppress(OSError):
        if _TERMINATION_LOG.exists():
            _TERMINATION_LOG.write_text(line, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--job", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    try:
        sys.exit(main(parser.parse_args()))
    except LaddError as error:
        _say(f"error: {error}")
        sys.exit(EXIT_BAD_INPUT)
