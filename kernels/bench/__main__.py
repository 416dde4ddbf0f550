"""``python -m kernels.bench NAME``: check, and on a GPU time all providers and write JSON, table and plot."""

import argparse
import sys
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


def time_all(module: Bench, only: list[str], without: list[str], warmup: int, rep: int) -> list[Row]:
    """Rows of every selected case and of all providers but those named in ``without``."""
    rows: list[Row] = []
    for case in module.cases():
        if selected(case, only):
            print(f"{case.op} {case.scope} {case.direction} {dict(case.shape)}", flush=True)
            rows += measure(case, without, warmup, rep)
    return rows


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
    args = parser.parse_args()
    module = bench(args.name)
    if not check(module):
        return 1
    if not torch.cuda.is_available():
        print("no GPU: the correctness part ran, nothing was timed and no row is written")
        return 0
    rows = time_all(module, args.only, args.without, args.warmup, args.rep)
    if not rows:
        print(f"error: no case has {' '.join(args.only)}", file=sys.stderr)
        return 2
    print("wrote", *write(rows, args.out.expanduser(), args.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
