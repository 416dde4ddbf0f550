"""Run a study: variants of a configuration over several seeds, side by side, and what comes of them."""

import os
import shlex
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_count, as_path
from ladd_dist.errors import LaddError
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress, warn
from ladd_dist.studies.outcome import Outcome
from ladd_dist.studies.plan import STUDIES, Run, Task, plan
from ladd_dist.studies.processes import run_tasks
from ladd_dist.studies.study import read_study

_DESCRIPTION = """\
Draw, train and evaluate every variant of a study with every seed, each in a process of one thread, as many at once as
there are cores. Writes RUN_DIR/studies/NAME/: a link to the folder of each run, study.json, study.md and study.png.
Start it again to go on; runs that failed are tried again, those of another study are not made twice. See
docs/studies.md.

  python launchers/study.py --config configs/digits.yaml --study configs/studies/renoising.yaml
"""
_LAUNCHERS = Path(__file__).resolve().parent


def main(launch: Launch) -> None:
    """Run what is not done yet, and write what is known."""
    if launch.world.size > 1:
        raise LaddError("study.py starts processes itself: run it with plain python")
    args, world = launch.args, launch.world
    study = read_study(args.study)
    folder = Path(launch.config.run_dir).absolute() / STUDIES / args.study.stem
    runs = plan(study, args.config, args.overrides, folder, _LAUNCHERS)
    lock = launch.lock or RunLock()
    lock.acquire(folder, "--study", world)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    made = f"`{shlex.join(['python', 'launchers/study.py', *sys.argv[1:]])}`, {datetime.now(UTC):%Y-%m-%d}"
    outcome, missing = Outcome(study, made), dict[Task, Run]()
    for one in runs:
        one.show()
        if one.task.done.is_file():
            outcome.add(one)
        else:
            missing[one.task] = one
    bar = progress("study", len(runs), unit="run", world=world, done=len(runs) - len(missing))

    def ended(task: Task, why: str) -> None:
        lock.check()
        if why:
            outcome.failed[task.name] = why
            warn(f"{task.name} failed, the others go on: {why}")
        if task in missing:
            bar.update()
            if not why:
                outcome.add(missing[task])
            outcome.write(folder)

    run_tasks(missing, args.cores or len(os.sched_getaffinity(0)), ended)
    bar.close()
    outcome.write(folder)
    log(f"wrote {folder / 'study.md'}")
    print(outcome.table())
    if outcome.failed:
        raise LaddError(f"failed: {', '.join(outcome.failed)}: start it again to try them again")


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--study", type=as_path, required=True, metavar="FILE", help="such as configs/studies/r1.yaml"
    )
    command.add_argument("--cores", type=as_count, help="runs at once (default: the cores that there are)")
    run(command, main)
