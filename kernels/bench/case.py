"""What a benchmark module offers: correctness checks that run anywhere, and cases to time on a GPU."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, cast

from torch import Tensor

BENCHES: dict[str, str] = {
    "joint_attention": "kernels.bench.joint_attention",
    "grouped_heads": "kernels.bench.grouped_heads",
}
"""Benchmark -> module with the functions of `Bench`."""

Run = Callable[[], tuple[Tensor, ...]]
"""One pass of a provider; returns what it computed, for comparison with the reference."""


@dataclass(frozen=True)
class Check:
    """A result compared with float64: the largest relative error ``|out - ref| / |ref|`` and what is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Problem:
    """Inputs on the device, bound into providers.

    Args:
        providers: name -> pass; ``absent`` says why others cannot run here.
        expected: the same outputs in float64.
        part: what of a pass's outputs ``expected`` holds, where all of it in float64 would take too long.
    """

    providers: Mapping[str, Run]
    absent: Mapping[str, str]
    expected: tuple[Tensor, ...]
    part: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda outputs: outputs


@dataclass(frozen=True)
class Case:
    """One comparison of providers.

    Args:
        scope: ``raw`` times the op on prepared inputs, ``end_to_end`` all that a network's block needs.
        direction: ``both`` is forward and backward together.
        flops: floating-point operations that the pass has to do.
        bytes: device memory that it has to move, each input read and each output written once.
        prepare: allocate random inputs and bind the providers.
    """

    op: str
    scope: Literal["raw", "end_to_end"]
    direction: Literal["forward", "backward", "both"]
    shape: Mapping[str, int]
    dtype: str
    flops: int
    bytes: int
    prepare: Callable[[], Problem]


class Bench(Protocol):
    """What a module in `BENCHES` defines."""

    def checks(self) -> Iterator[Check]:
        """Correctness on this machine's device."""
        ...

    def cases(self) -> Iterator[Case]:
        """What to time, in order."""
        ...


def bench(name: str) -> Bench:
    """Import the module of a benchmark; ``name`` is one of `BENCHES`."""
    return cast(Bench, import_module(BENCHES[name]))


def relative_error(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest ``|got - expected| / |expected|`` over pairs of tensors, in float64; NaN where an output holds one."""
    pairs = [(g.detach().double(), e.detach().double()) for g, e in zip(got, expected, strict=True)]
    errors = [float((g - e).norm() / e.norm()) for g, e in pairs]
    return float("nan") if any(error != error for error in errors) else max(errors)
