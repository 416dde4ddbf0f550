"""Time the providers of a case, interleaved and each twice, and make rows of it."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from triton.testing import do_bench

from kernels.bench.case import Case, Problem, Run, relative_error
from kernels.bench.machine import QUANTILES, facts

ROUNDS = 2
WRONG = 0.2
"""Relative error from which a provider computes something else, and its time means nothing."""
Row = dict[str, Any]


def measure(case: Case, without: Collection[str], warmup: int, rep: int) -> list[Row]:
    """Rows of one case: every provider of it in turn, then all of them again.

    Args:
        without: providers to leave out.
        warmup: milliseconds before timing.
        rep: milliseconds of timing.
    """
    problem = case.prepare()
    for name, reason in problem.absent.items():
        print(f"  {name}: not here, {reason}")
    providers = {name: run for name, run in problem.providers.items() if name not in without}
    accuracy = {name: _accuracy(run, problem) for name, run in providers.items()}
    for name in [n for n, found in accuracy.items() if not found["error"] < WRONG]:
        print(f"  {name}: not timed, its results are wrong by {accuracy[name]['error']:.2g}")
        del providers[name]
    rows = []
    for turn in range(1, ROUNDS + 1):
        for name, run in providers.items():
            times = do_bench(run, warmup=warmup, rep=rep, quantiles=QUANTILES)
            rows.append(_row(case, name, turn, times, accuracy[name]))
    return rows


def _accuracy(run: Run, problem: Problem) -> Mapping[str, float]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return {"error": relative_error(problem.part(got), problem.expected), "peak_bytes": peak}


def _row(case: Case, provider: str, turn: int, times: list[float], accuracy: Mapping[str, float]) -> Row:
    """``floor_ms`` is what arithmetic or memory traffic alone would take at this machine's own ceilings."""
    machine = facts()
    floor = max(case.flops / machine["matmul_tflops"] / 1e9, case.bytes / machine["copy_gbps"] / 1e6)
    p20, p50, p80 = times
    what = {"op": case.op, "scope": case.scope, "direction": case.direction, "shape": dict(case.shape)}
    speed = {"tflops": case.flops / p50 / 1e9, "gbps": case.bytes / p50 / 1e6, "floor_share": floor / p50}
    return (
        what
        | {"dtype": case.dtype, "provider": provider, "round": turn, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80}
        | {"flops": case.flops, "bytes": case.bytes, "floor_ms": floor}
        | speed
        | dict(accuracy)
        | machine
    )
