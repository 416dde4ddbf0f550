"""A rank in name only, for what Slurm does to ranks: it says how it ends as a real one does, by a plan.

``PLAN`` has for each launcher what its attempts do: end with a code, say that a node is lost, or wait to be stopped.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ladd_dist.errors import EXIT_PEER_LOST, EXIT_REQUEUE
from ladd_dist.supervision import exits


def leave(code: int, reason: str, *blamed: str) -> None:
    exits.leave(code, reason, blamed)
    os._exit(code)


def main(launcher: str) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: leave(EXIT_REQUEUE, "asked to stop"))
    exits.enter()
    step = json.loads(os.environ["PLAN"])[launcher][int(os.environ.get("SLURM_RESTART_COUNT", "0"))]
    print(f"task {os.environ['SLURM_PROCID']} on {os.environ['SLURMD_NODENAME']}: {step}", flush=True)
    if step == "wait":
        time.sleep(600)
    code, _, node = step.partition(" ")
    leave(int(code), f"rank on {node} is gone" if int(code) == EXIT_PEER_LOST else "", *([node] if node else []))


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    if Path(program).name == "attempt.py":
        os.execv(sys.executable, [sys.executable, program, *arguments])
    main(Path(program).stem)
