"""Compile one configuration for an architecture and read the machine code that came out."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.architectures import ARCHITECTURES
from kernels.shipped import Shipped

_REGISTERS = 65536
_SYSTEM_SHARED = 1024


@dataclass(frozen=True)
class Compiled:
    """Resources of a kernel: per thread registers and stack bytes, per block shared bytes, instruction counts."""

    registers: int
    stack: int
    spills: int
    shared: int
    mma: int
    slow_mma: int
    blocks: int


def compile_one(config: Shipped) -> Compiled:
    """Compile with this process's triton, and disassemble with the tools that it carries.

    Raises:
        triton.CompilationError: where the source does not compile.
        RuntimeError: where ptxas or cuobjdump fails.
    """
    kernel = config.kernel
    names = [name for name in kernel.arg_names if name in config.signature or name in config.constexprs]
    if names != kernel.arg_names:
        raise ValueError(f"{config.name}: neither typed nor constant: {set(kernel.arg_names) - set(names)}")
    signature = {name: config.signature.get(name, "constexpr") for name in names}
    aligned = [n for n, kind in signature.items() if kind.startswith("*") or n in config.divisible]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, dict(config.constexprs), attrs)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", config.arch, 32), options=options)
    return _inspect(config, compiled.asm["cubin"], compiled.metadata.shared)


def _inspect(config: Shipped, cubin: bytes, shared: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        sass = _cuobjdump("--dump-sass", file.name)
    mma = ARCHITECTURES[config.arch].mma
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    return Compiled(
        registers=registers,
        stack=stack,
        spills=_count("(?:LDL|STL)", sass),
        shared=shared,
        mma=_count(mma, sass),
        slow_mma=_count("HMMA", sass) if mma != "HMMA" else 0,
        blocks=planned_blocks(config.arch, registers, shared, config.num_warps),
    )


def _count(instruction: str, sass: str) -> int:
    return len(re.findall(rf"\b{instruction}\b", sass))


def _cuobjdump(flag: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, flag, path], capture_output=True, encoding="utf-8")  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"cuobjdump {flag} failed: {done.stderr.strip()}")
    return done.stdout


def planned_blocks(arch: int, registers: int, shared: int, warps: int) -> int:
    """Thread blocks that fit on one multiprocessor, by registers, shared memory and warps.

    Registers are given out per warp, rounded up to 8 per thread.
    """
    by_registers = _REGISTERS // (32 * (-(-max(registers, 1) // 8) * 8)) // warps
    has = ARCHITECTURES[arch]
    return min(by_registers, has.shared // (shared + _SYSTEM_SHARED), has.warps // warps, has.blocks)


def broken(config: Shipped, compiled: Compiled) -> list[str]:
    """The requirements that a compiled configuration does not meet, in words."""
    faults = []
    if compiled.spills or compiled.stack:
        faults.append(f"spills ({compiled.spills} accesses, {compiled.stack} bytes of stack)")
    if compiled.blocks < config.blocks:
        faults.append(f"{compiled.blocks} blocks fit, {config.blocks} required")
    if config.tensor_cores and not compiled.mma:
        faults.append(f"no {ARCHITECTURES[config.arch].mma}")
    if config.tensor_cores and compiled.slow_mma:
        faults.append(f"{compiled.slow_mma} HMMA")
    return faults
