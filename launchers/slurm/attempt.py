"""What a batch script calls at the begin and at the end of an attempt."""

import argparse
import os
import sys
from pathlib import Path

from ladd_dist.errors import EXIT_BAD_INPUT, LaddError
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
    decision = end(args.run_dir, args.data, args.exits, args.step_code)
    print("requeue" if decision.requeue else "end", ",".join(decision.exclude))
    return decision.code


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--run-dir", type=Path, required=True)
    both.add_argument("--data", type=Path, required=True, help="the dataset's folder")
    both.add_argument("--job", required=True)
    whats = command.add_subparsers(dest="what", required=True)
    whats.add_parser("begin", parents=[both])
    ended = whats.add_parser("end", parents=[both])
    ended.add_argument("--exits", type=Path, required=True)
    ended.add_argument("--step-code", type=int, required=True)
    args = command.parse_args()
    try:
        sys.exit(main(args))
    except LaddError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: run_dir: {error.filename or args.run_dir} cannot be written ({error.strerror}): mend that",
            file=sys.stderr,
        )
    sys.exit(EXIT_BAD_INPUT)
