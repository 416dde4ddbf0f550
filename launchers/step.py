"""Measure the step of a configuration on the GPU at hand in several settings, with random weights."""

import argparse
from pathlib import Path

from ladd_dist.cli import parser
from ladd_dist.config.arguments import as_count, as_path, run_command

_DESCRIPTION = """\
Measure the step on the GPU at hand, on random weights and samples: as configured, with float8, compiled, on PyTorch's
kernels, recomputed. Needs the teacher's configs alone. Rows go to --out as they come, and a table beside it; the same
command goes on where it was stopped. See docs/gpu.md.

  python launchers/step.py --config configs/sd35_large_141gb.yaml
"""


def main(args: argparse.Namespace) -> None:
    """Measure what is not there yet."""
    from ladd_dist.measuring.step_check import check_step  # late: torch takes seconds to import

    for line in check_step(args.config, args.overrides, args.out, args.seconds, args.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--out", type=as_path, default=Path("docs/benchmarks/step.json"), metavar="FILE", help="rows"
    )
    command.add_argument("--seconds", type=as_count, default=360, help="after which nothing is begun (default: 360)")
    command.add_argument("--rounds", type=as_count, default=3, help="timed iterations of each setting (default: 3)")
    run_command(command, main)
