"""Compile many configurations in parallel, and make the table."""

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor

import triton

from kernels.gate.compile import Compiled, broken, compile_one
from kernels.gate.families import shipped
from kernels.shipped import Shipped

_HEAD = (
    "| kernel | sm | warps | stages | registers | stack | spills | shared KiB | MMA | blocks/SM | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
_WORKERS = 2


def judge(family: str, arch: int, index: int) -> tuple[Compiled | None, list[str]]:
    """Compile configuration ``index`` of a family and architecture; the result, and what it fails to meet."""
    config = list(shipped([family], [arch]))[index]
    try:
        compiled = compile_one(config)
    except (triton.TritonError, RuntimeError) as error:
        return None, [f"does not compile: {' '.join(str(error).split())[:200]}"]
    return compiled, broken(config, compiled)


def row(config: Shipped, compiled: Compiled | None, faults: list[str]) -> str:
    """One line of the table."""
    verdict = "; ".join(faults) or "ok"
    launch = f"| {config.name} | {config.arch} | {config.num_warps} | {config.num_stages} "
    if compiled is None:
        return f"{launch}| | | | | | | {verdict} |"
    return (
        f"{launch}| {compiled.registers} | {compiled.stack} | {compiled.spills} | {compiled.shared / 1024:.1f} "
        f"| {compiled.mma} | {compiled.blocks} | {verdict} |"
    )


def run(families: list[str], archs: list[int]) -> tuple[str, int]:
    """The Markdown table and the number of configurations that fail."""
    tasks = [(f, a, i) for f in families for a in archs for i in range(len(list(shipped([f], [a]))))]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(_WORKERS, mp_context=spawn) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache  # inherited by the workers: nothing is taken from an older run
        judged = list(pool.map(judge, *zip(*tasks, strict=True)))
    configs = [list(shipped([f], [a]))[i] for f, a, i in tasks]
    rows = [row(config, *result) for config, result in zip(configs, judged, strict=True)]
    bad = sum(bool(faults) for _, faults in judged)
    title = f"## triton {triton.__version__}\n\n{len(rows)} configurations, {bad} broken.\n"
    return "\n".join([title, _HEAD, *rows, ""]), bad
