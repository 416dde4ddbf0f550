"""``python -m kernels.bench NAME``: check; on a GPU time all providers and write JSON, table and plot.

Case by case: what was written stays if the next one is cut short, and cases that are not timed keep their rows.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels.bench.case import BENCHES, Bench, Case, bench
from kernels.bench.measure import Row, measure
from kernels.bench.report import write


def check(module: Bench) -> bool:
    """Run and print the correctness part; whether all of it passed."""
    passed = True
    for result in module.checks():
        passed &= result.passed
        verdict = "ok" if result.passed else "WRONG"
        print(f"{verdict}: {result.name}: error {result.error:.1e}, allowed {result.tolerance:.1e}")
    return passed


def selected(case: Case, only: list[str]) -> bool:
    """Whether a case has every ``KEY=VALUE`` of its shape, scope or direction."""
    known = {"scope": case.scope, "direction": case.direction} | {k: str(v) for k, v in case.shape.items()}
    return all(known.get(key) in values.split(",") for key, values in (o.split("=", 1) for o in only))


def time_all(cases: list[Case], without: list[str], warmup: int, rep: int, seconds: float) -> Iterator[list[Row]]:
    """The rows of one case after the other, of all providers but those named in ``without``.

    Args:
        seconds: no case is begun after so many.
    """
    deadline = time.monotonic() + seconds
    for case in cases:
        late = time.monotonic() >= deadline
        print(f"{case.op} {case.scope} {case.direction} {dict(case.shape)}{': out of time' * late}", flush=True)
        if not late:
            yield measure(case, without, warmup, rep)


def main() -> int:
    """The exit code is 1 where a check failed, and 2 where the filter leaves nothing to time."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("name", choices=list(BENCHES))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE,...", help="such as batch=1,2")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PROVIDER", help="one that compiles for long"
    )
    parser.add_argument("--warmup", type=int, default=100, help="milliseconds before timing")
    parser.add_argument("--rep", type=int, default=500, help="milliseconds of timing per provider and round")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="after which no case is begun (default: no end)"
    )
    args = parser.parse_args()
    module = bench(args.name)
    if not check(module):
        return 1
    if not torch.cuda.is_available():
        print("no GPU: the correctness part ran, nothing was timed and no row is written")
        return 0
    cases = [case for case in module.cases() if selected(case, args.only)]
    cases.sort(key=lambda case: (case.scope, case.direction) != ("end_to_end", "both"))  # what `auto` reads: first
    if not cases:
        print(f"error: no case has {' '.join(args.only)}", file=sys.stderr)
        return 2
    for rows in time_all(cases, args.without, args.warmup, args.rep, args.seconds):
        print("wrote", *write(rows, args.out.expanduser(), args.name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
