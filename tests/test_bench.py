"""Benchmarks without a GPU: they say so, check, and write nothing; tables are made of rows alone."""

import json
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from conftest import NEEDS_VECTORS
from test_joint_attention import norms, streams
from torch.nn import functional

from kernels.attention import reference
from kernels.attention.streams import Norms
from kernels.bench import __main__ as command
from kernels.bench.case import BENCHES, Case, Check, Problem, bench, relative_error
from kernels.bench.compiled import compile_whole
from kernels.bench.flash_libraries import FLASH_LIBRARIES, flash_libraries
from kernels.bench.joint_attention import _sample
from kernels.bench.joint_attention_providers import Provider, _sdpa, diffusers_way
from kernels.bench.report import table, write


@pytest.mark.parametrize("name", BENCHES)
def test_without_a_gpu_only_the_correctness_part_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", name, "--out", str(tmp_path)])
    assert command.main() == 0
    *checks, last = capsys.readouterr().out.splitlines()
    assert last == "no GPU: the correctness part ran, nothing was timed and no row is written"
    assert checks
    assert all(line.startswith("ok: ") for line in checks)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_ends_the_benchmark(monkeypatch):
    class Wrong:
        def checks(self):
            yield Check("nan", float("nan"), 1.0)

    monkeypatch.setattr("sys.argv", ["bench", "joint_attention"])
    monkeypatch.setattr(command, "bench", lambda _: Wrong())
    assert command.main() == 1


def test_joint_attention_covers_what_it_has_to():
    cases = list(bench("joint_attention").cases())
    shapes = [case.shape for case in cases]
    assert {s["batch"] for s in shapes} == {1, 2, 4, 8}
    assert {s["text"] for s in shapes} == {154, 333}
    assert len({s["image"] for s in shapes}) == 3
    assert {(c.scope, c.direction) for c in cases} == {
        (s, d) for s in ("raw", "end_to_end") for d in ("forward", "backward", "both")
    }


def test_the_floor_is_kernels_own():
    """223 us and 557 us at 788 TFLOP/s: two and five products of 4,250 x 4,250 x 64 for 38 heads."""
    flops = {
        c.direction: c.flops
        for c in bench("joint_attention").cases()
        if command.selected(c, ["batch=1", "image=4096", "text=154"])
    }
    assert flops["forward"] / 788e6 == pytest.approx(223, abs=1)
    assert flops["backward"] / 788e6 == pytest.approx(557, abs=1)


def test_diffusers_way_is_the_reference():
    x, weights = streams(torch.float32), norms(torch.float32)
    got = diffusers_way(x, Norms(*weights.values()), 1e-6, functional.scaled_dot_product_attention)
    torch.testing.assert_close(got, reference.forward(x, Norms(*weights.values()), 1e-6)[:2])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_VECTORS)])
def test_compiled_ways_hold_a_forced_backend_and_a_kept_graph(backend):
    x, weights = streams(torch.float32), Norms(*norms(torch.float32).values())
    attend = partial(_sdpa, "flash")
    compiled = compile_whole(diffusers_way, backend)
    upstream = (torch.ones_like(x.q), torch.ones_like(x.text_q))
    runs = [
        Provider(partial(way, x, weights, 1e-6, attend), [*x, *weights], upstream).bind("backward")
        for way in (compiled, diffusers_way)
    ]
    for _ in range(2):
        torch.testing.assert_close(runs[0](), runs[1](), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("returned", ["output", "output and log-sum-exp"])
def test_flash_attention_packages_are_providers_where_they_can_be_imported(returned, monkeypatch):
    def flash_attn_func(q, k, v):
        out = functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
        return out if returned == "output" else (out, None)

    for module in FLASH_LIBRARIES.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert flash_libraries()[0] == {}
    package = ModuleType("flash_attn_interface")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))  # as generation 4 alone leaves it
    found, absent = flash_libraries()
    assert list(found) == ["FA3"]
    assert all("flash_attn_func cannot be imported" in absent[name] for name in ("FA2", "FA4"))
    q, k, v = torch.randn(3, 2, 3, 7, 4).unbind()
    torch.testing.assert_close(found["FA3"](q, k, v), functional.scaled_dot_product_attention(q, k, v))


def test_a_providers_passes_agree():
    x = torch.randn(3, requires_grad=True)
    provider = Provider(lambda: (x.square(),), [x], (torch.ones(3),))
    torch.testing.assert_close(provider.bind("forward")(), (x.detach().square(),))
    for direction in ("backward", "both"):
        run = provider.bind(direction)
        for _ in range(2):
            torch.testing.assert_close(run(), (2 * x.detach(),))


def test_the_sample_leaves_norm_weights_out():
    assert [t.shape for t in _sample((torch.zeros(2, 5, 3, 4), torch.zeros(4)))] == [(1, 5, 2, 4)]


def test_errors_are_relative_and_nan_is_one():
    a, b = torch.ones(4), torch.full((4,), 1.1)
    assert relative_error((b,), (a,)) == pytest.approx(0.1, rel=1e-5)
    assert not Check("", relative_error((a, a * float("nan")), (a, a)), 1.0).passed


def row(provider: str, turn: int, p50: float) -> dict:
    return {
        "op": "o", "scope": "raw", "direction": "both", "shape": {"batch": 1}, "dtype": "bf16", "provider": provider,
        "round": turn, "p20_ms": p50, "p50_ms": p50, "p80_ms": p50, "flops": 10, "bytes": 5, "floor_ms": 0.1,
        "tflops": 1.0, "gbps": 2.0, "floor_share": 0.1 / p50, "error": 1e-3, "peak_bytes": 1 << 20, "gpu": "g",
        "driver": "d", "torch": "t", "triton": "3", "cudnn": 9, "commit": "c", "date": "2026-01-01",
        "matmul_tflops": 788.0, "copy_gbps": 4300.0,
    }  # fmt: skip


def test_reports_are_made_of_rows_and_never_of_none(tmp_path):
    rows = [row(p, turn, ms + turn / 100) for turn in (1, 2) for p, ms in (("slow", 2.0), ("fast", 1.0))]
    paths = write(rows, tmp_path, "o")
    assert json.loads(paths[0].read_text()) == rows
    lines = table(rows, "o").splitlines()
    assert [line.split(" | ")[3] for line in lines[-2:]] == ["fast", "slow"]
    assert "1.010, 1.010, 1.010 | 1.020" in lines[-2]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no rows"):
        write([], tmp_path, "o")


def test_rows_of_other_cases_and_gpus_stay(tmp_path):
    def both(**changes):
        return [row("triton", turn, 1.0) | changes for turn in (1, 2)]

    old, other = both(), both(direction="forward")
    elsewhere = both(gpu="h", commit="b")
    for rows in (old, other, elsewhere, new := both(commit="d", p50_ms=0.5)):
        paths = write(rows, tmp_path, "o")
    assert json.loads(paths[0].read_text()) == [*other, *elsewhere, *new]
    page = paths[1].read_text()
    assert page.count("| scope |") == 3 and all(f"commit {commit}, " in page for commit in "bcd")


def test_each_case_is_written_when_it_is_done_and_none_is_begun_late(tmp_path, monkeypatch, capsys):
    scopes = [("raw", "forward"), ("end_to_end", "both")]
    cases = [Case("o", scope, direction, {"batch": 1}, "bf16", 1, 1, Problem) for scope, direction in scopes]

    class Two:
        def checks(self):
            return iter(())

        def cases(self):
            return iter(cases)

    def measure(case, *_):
        if case is cases[0]:
            raise RuntimeError("cut short")
        return [row("triton", turn, 1.0) | {"scope": case.scope, "direction": case.direction} for turn in (1, 2)]

    monkeypatch.setattr(command, "bench", lambda _: Two())
    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sys.argv", ["bench", "joint_attention", "--out", str(tmp_path)])
    with pytest.raises(RuntimeError, match="cut short"):
        command.main()
    assert {r["scope"] for r in json.loads((tmp_path / "joint_attention.json").read_text())} == {"end_to_end"}
    monkeypatch.setattr("sys.argv", ["bench", "joint_attention", "--seconds", "0", "--out", str(tmp_path / "none")])
    assert command.main() == 0 and not (tmp_path / "none").exists()
    assert capsys.readouterr().out.count(": out of time") == 2
