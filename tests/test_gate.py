"""The ahead-of-time gate's own arithmetic and judgement; `make gate` runs it on every kernel."""

import subprocess
import sys

import pytest
from conftest import ROOT
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from kernels.architectures import ARCHITECTURES
from kernels.gate.__main__ import DEFAULT
from kernels.gate.compile import Compiled, broken, planned_blocks
from kernels.gate.families import FAMILIES, shipped
from kernels.shipped import Shipped


def config(**changes):
    settings = {"name": "k", "arch": 90, "kernel": None, "signature": {}, "constexprs": {}} | changes
    return Shipped(**({"num_warps": 8, "num_stages": 2} | settings))


def compiled(**changes):
    return Compiled(
        **({"registers": 128, "stack": 0, "spills": 0, "shared": 0, "mma": 8, "slow_mma": 0, "blocks": 2} | changes)
    )


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks"),
    [
        (90, 128, 0, 8, 2), (90, 129, 0, 8, 1), (90, 255, 0, 8, 1), (90, 168, 0, 4, 3), (80, 32, 0, 4, 16),
        (90, 32, 113 * 1024, 4, 2), (80, 32, 82 * 1024, 4, 1), (90, 16, 0, 1, 32),
        (89, 16, 99 * 1024, 4, 1), (89, 16, 99 * 1024 + 1, 4, 0), (120, 16, 100 * 1024, 4, 0), (86, 16, 0, 1, 16),
        (89, 16, 0, 1, 24), (86, 16, 0, 8, 6), (103, 16, 227 * 1024, 4, 1),
    ],
)  # fmt: skip
def test_planned_blocks(arch, registers, shared, warps, blocks):
    assert planned_blocks(arch, registers, shared, warps) == blocks


def test_what_breaks_a_promise():
    assert broken(config(), compiled()) == []
    assert broken(config(tensor_cores=False), compiled(mma=0)) == []
    for result, words in [
        (compiled(spills=2), "spills (2"),
        (compiled(stack=8), "8 bytes of stack"),
        (compiled(mma=0), "no HGMMA"),
        (compiled(slow_mma=3), "3 HMMA"),
        (compiled(blocks=0), "0 blocks fit, 1 required"),
    ]:
        assert words in broken(config(), result)[0]


def test_every_family_ships_to_every_architecture_without_torch():
    code = (
        "import sys\nfrom kernels.architectures import ARCHITECTURES\n"
        "from kernels.gate.families import FAMILIES, shipped\n"
        "for family in FAMILIES:\n"
        "    configs = list(shipped([family], list(ARCHITECTURES)))\n"
        "    assert {c.arch for c in configs} == set(ARCHITECTURES), family\n"
        "    assert len({(c.name, c.arch) for c in configs}) == len(configs), family\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=600)


def test_every_table_of_configurations_is_compiled():
    """And what is not compiled by default has the limits of what is."""
    assert {ARCHITECTURES[arch].table for arch in DEFAULT} == {a.table for a in ARCHITECTURES.values()}
    for has in ARCHITECTURES.values():
        least = ARCHITECTURES[has.table]
        assert (has.shared, has.warps) == (least.shared, least.warps)
        assert has.blocks >= least.blocks


def test_sizes_of_one_are_taken():
    """Of an integer argument that is 1 Triton makes a constant without a type, unless the kernel asks it not to."""
    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    kernels = {config.kernel: config for config in shipped(list(FAMILIES), [90])}
    for kernel, config in kernels.items():
        integers = {name for name, kind in config.signature.items() if kind in ("i32", "i64")}
        ones = {p.name: 1 for p in kernel.params if p.name in integers and not p.do_not_specialize}
        types = {name: config.signature.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, types | dict.fromkeys(ones, "constexpr"), dict(config.constexprs) | ones, {})
        options = backend.parse_options({"num_warps": config.num_warps, "num_stages": config.num_stages})
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        implementations = backend.get_codegen_implementation(options)
        source.make_ir(target, options, implementations, backend.get_module_map(), context)
    assert len(kernels) > 15


def test_joint_attention_ships_what_it_launches():
    names = {c.name.rsplit(" ", 1)[0] for c in shipped(["joint_attention"], [90])}
    kernels = ("prepare", "pack", "forward", "bounded", "backward_q", "backward_kv", "unprepare")
    wanted = {f"{k} {dtype} d{d}" for k in kernels for dtype in ("bf16", "fp16", "fp32") for d in (32, 64, 128)}
    assert names == wanted - {f"bounded fp16 d{d}" for d in (32, 64, 128)}
    assert "joint_attention" in FAMILIES


def test_one_kernel_through_the_whole_gate():
    """And a promise that it cannot keep is found: sm_90 code has no tensor-core products in fp32."""
    code = (
        "from dataclasses import replace\n"
        "from kernels.gate.compile import broken, compile_one\n"
        "from kernels.gate.families import shipped\n"
        "config = next(c for c in shipped(['joint_attention'], [90]) if c.name.startswith('forward fp32 d32'))\n"
        "compiled = compile_one(config)\n"
        "assert broken(config, compiled) == []\n"
        "assert broken(replace(config, tensor_cores=True, blocks=99), compiled)[1:] == ['no HGMMA']\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=1200)
