"""``python -m kernels.gate [--family NAME] [--arch 90] [--out FILE]``: compile, check, print a table."""

import argparse
import sys
from pathlib import Path

from kernels.architectures import ARCHITECTURES
from kernels.gate.families import FAMILIES
from kernels.gate.run import run

DEFAULT = sorted({architecture.table for architecture in ARCHITECTURES.values()} | {120})
"""One architecture of each table of configurations, and the one whose code differs most from its table's."""


def main() -> int:
    """Run the gate; the exit code is 1 where a configuration fails."""
    parser = argparse.ArgumentParser(prog="python -m kernels.gate", description=__doc__)
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="default: all")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHITECTURES, help="default: one of each table")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    table, bad = run(args.family or list(FAMILIES), args.arch or DEFAULT)
    print(table)
    if args.out:
        args.out.expanduser().write_text(table, encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
