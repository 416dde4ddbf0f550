"""Which implementation runs, and the words it is said in."""

import pytest
import torch

from kernels import dispatch
from kernels.architectures import ARCHITECTURES
from kernels.attention.configs import ATTENTION_HEAD_DIMS, launch
from kernels.errors import KernelError, KernelUnavailable

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    monkeypatch.delenv(dispatch.INTERPRETER, raising=False)


@pytest.fixture
def capability(monkeypatch):
    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended GPU")

    return pretend


def never() -> dispatch.Choice:
    raise AssertionError("a measurement was asked for")


def test_a_setting_comes_first_then_an_obstacle_then_the_measurement():
    assert dispatch.choose("heads", "auto", "", lambda: dispatch.Choice("triton", "1 ms")).reason == "1 ms"
    assert str(dispatch.choose("heads", "auto", "no GPU", never)) == "reference (no GPU)"
    assert str(dispatch.choose("heads", "torch", "", never)) == "reference (as heads=torch asks)"
    assert str(dispatch.choose("heads", "triton", "", never)) == "triton (as heads=triton asks)"
    with pytest.raises(KernelUnavailable, match="^no GPU$"):
        dispatch.choose("heads", "triton", "no GPU", never)


def test_the_cpu_runs_the_reference_and_says_why():
    assert str(dispatch.resolve(CPU)) == "reference (there is no Triton for device cpu)"


@pytest.mark.parametrize(("version", "runs"), [
    ((7, 5), "reference"), ((8, 0), "triton"), ((8, 6), "triton"), ((8, 7), "reference"), ((8, 9), "triton"),
    ((9, 0), "triton"), ((10, 3), "triton"), ((11, 0), "reference"), ((12, 0), "triton"), ((12, 1), "triton"),
    ((13, 0), "reference"),
])  # fmt: skip
def test_a_gpu_runs_triton_if_the_gate_compiles_for_it(capability, version, runs):
    capability(*version)
    choice = dispatch.resolve(GPU)
    assert choice.implementation == runs
    assert "Pretended GPU" in choice.reason
    words = (
        f"has capability {version[0]}.{version[1]}, the kernels are for 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0, 12.1"
    )
    assert (words in choice.reason) == (runs == "reference")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["forward", "backward_q", "backward_kv"])
def test_every_such_gpu_has_launch_configurations(kernel, arch):
    for dtype in dispatch.DTYPE_NAMES.values():
        for head_dim in ATTENTION_HEAD_DIMS:
            assert launch(kernel, arch, dtype, head_dim).warps


def test_the_environment_replaces_auto_and_an_argument_wins(capability, monkeypatch):
    capability(9, 0)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    assert str(dispatch.resolve(GPU)) == "reference (as LADD_KERNELS=reference asks)"
    assert dispatch.resolve(GPU, "triton").implementation == "triton"


def test_triton_where_it_cannot_run_is_an_error_with_a_remedy(monkeypatch):
    with pytest.raises(KernelUnavailable, match="implementation=triton asks for triton, but .* set it to auto"):
        dispatch.resolve(CPU, "triton")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "triton")
    with pytest.raises(KernelUnavailable, match="LADD_KERNELS=triton"):
        dispatch.resolve(CPU)


def test_the_interpreter_runs_on_the_cpu_only_when_asked_for(monkeypatch):
    monkeypatch.setenv(dispatch.INTERPRETER, "1")
    assert dispatch.resolve(CPU).implementation == "reference"
    assert dispatch.resolve(CPU, "triton").implementation == "triton"


def test_an_unknown_name_is_an_error():
    with pytest.raises(KernelError, match="implementation='fast' is unknown: choose one of auto"):
        dispatch.resolve(CPU, "fast")
