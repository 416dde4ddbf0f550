"""What a batch script calls at the begin and at the end of an attempt."""

import argparse
import os
import sys
from pathlib import Path

from ladd_dist.errors import EXIT_BAD_INPUT
from ladd_dist.slurm.attempts import begin, end

_DESCRIPTION = """\
Called by the script that launchers/slurm/submit.py renders.

  attempt.py begin --run-dir DIR --data DIR --job train
      prints the folder in which the ranks are to say how they end
  attempt.py end --run-dir DIR --data DIR --job train --exits FOLDER --step-code CODE
      records the attempt, prints "requeue" with the nodes to exclude, or "end"; its exit code is the job's
"""


def main(args: argparse.Namespace) -> int:
    """Print what the script needs to know; returns the exit code."""
    if args.what == "begin":
        print(begin(args.run_dir, args.data, args.job, os.environ))
        return 0
    verdict = end(args.run_dir, args.data, args.exits, args.step_code)
    print("requeue" if verdict.requeue else "end", ",".join(verdict.exclude))
    return verdict.code


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("what", choices=["begin", "end"])
    command.add_argument("--run-dir", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True, help="the dataset's folder")
    command.add_argument("--job", required=True)
    command.add_argument("--exits", type=Path)
    command.add_argument("--step-code", type=int)
    try:
        sys.exit(main(command.parse_args()))
    except OSError as error:
        print(f"error: run_dir: {error.filename} cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
