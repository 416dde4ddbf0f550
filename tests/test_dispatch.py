"""Which implementation runs, and the words it is said in."""

import pytest
import torch

from kernels import dispatch
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


def test_the_cpu_runs_the_reference_and_says_why():
    assert str(dispatch.choose(CPU)) == "reference (there is no Triton for device cpu)"


@pytest.mark.parametrize(("version", "runs"), [((7, 5), "reference"), ((8, 0), "triton"), ((9, 0), "triton")])
def test_a_gpu_runs_triton_from_the_gates_first_architecture_on(capability, version, runs):
    capability(*version)
    choice = dispatch.choose(GPU)
    assert choice.implementation == runs
    assert "Pretended GPU" in choice.reason


def test_the_environment_replaces_auto_and_an_argument_wins(capability, monkeypatch):
    capability(9, 0)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    assert str(dispatch.choose(GPU)) == "reference (as LADD_KERNELS=reference asks)"
    assert dispatch.choose(GPU, "triton").implementation == "triton"


def test_triton_where_it_cannot_run_is_an_error_with_a_remedy(monkeypatch):
    with pytest.raises(KernelUnavailable, match="implementation=triton asks for triton, but .* set it to auto"):
        dispatch.choose(CPU, "triton")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "triton")
    with pytest.raises(KernelUnavailable, match="LADD_KERNELS=triton"):
        dispatch.choose(CPU)


def test_the_interpreter_runs_on_the_cpu_only_when_asked_for(monkeypatch):
    monkeypatch.setenv(dispatch.INTERPRETER, "1")
    assert dispatch.choose(CPU).implementation == "reference"
    assert dispatch.choose(CPU, "triton").implementation == "triton"


def test_an_unknown_name_is_an_error():
    with pytest.raises(KernelError, match="implementation='fast' is unknown: choose one of auto"):
        dispatch.choose(CPU, "fast")
