"""torch.compile on a GPU that is not there: programs and kernels are made for the card, and no kernel is launched.

What inductor makes of a block is a Python program that allocates buffers, launches kernels and calls libraries. That
program runs, so that its buffers are counted as they will be. Its kernels are compiled to machine code by Triton, as
on the card, and where one would be launched it is counted instead.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_LOAD = "torch._inductor.codecache.PyCodeCache.load_by_key_path"
"""Through it come programs that were just made, and those from inductor's store on disk."""
_FOLD = "torch._inductor.fx_passes.joint_graph.constant_fold_uniform_value"
"""Computes constants on the GPU. Not left out by inductor's setting, which a thread of autograd would not see."""


class Programs:
    """What was compiled.

    Args:
        launch: is called where a program would have a kernel or a library's function run, with the bytes that a
            kernel reads and writes.

    Attributes:
        kernels: program -> how many kernels were compiled for it.
    """

    def __init__(self, launch: Callable[[int], None]) -> None:
        self._launch = launch
        self.kernels: dict[str, int] = {}

    def disarm(self, program: ModuleType) -> None:
        """Have a program's allocations pass the dispatcher, which they go around, and have nothing run."""
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        names = vars(program)
        kernels = [name for name, value in names.items() if isinstance(value, CachingAutotuner)]
        self.kernels[program.__name__] = len(kernels)
        names |= dict.fromkeys(kernels, _Kernel(self._launch))
        names["extern_kernels"] = _Libraries(self._launch, names["extern_kernels"])
        names |= {
            "empty_strided_cuda": _empty_strided,
            "reinterpret_tensor": _reinterpret,
            "copy_if_misaligned": _same,
        }


class _Kernel:
    """In the place of one, which reads or writes each tensor that it is given."""

    def __init__(self, launch: Callable[[int], None]) -> None:
        self._launch = launch

    def run(self, *given: object, **_: object) -> None:
        self._launch(sum(value.nbytes for value in given if isinstance(value, Tensor)))


class _Libraries:
    """In the place of functions that write to what they are given, as cuBLAS's do; some have no fake."""

    def __init__(self, launch: Callable[[int], None], functions: Any) -> None:
        self._launch, self._functions = launch, functions

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(self._functions, name)

        def call(*arguments: Any, out: Tensor | None = None, **options: Any) -> Tensor:
            if out is None:
                return function(*arguments, **options)
            self._launch(0)
            return out

        return call


def _empty_strided(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def _reinterpret(tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    return tensor.as_strided(size, stride, tensor.storage_offset() + offset)


def _same(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def compiling(programs: Programs) -> Iterator[None]:
    """Within it, and on the fake device, what is to be compiled is made for the card in name."""
    from torch._inductor.codecache import PyCodeCache  # late, for it takes a second

    load = PyCodeCache.load_by_key_path

    def load_disarmed(*args: Any, **options: Any) -> ModuleType:
        program = load(*args, **options)
        programs.disarm(program)
        return program

    _learn_patterns()
    with warnings.catch_warnings(), patch(_LOAD, load_disarmed):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # asked for alignment
        with patch(_FOLD, lambda graph: None):
            yield


def _learn_patterns() -> None:
    """Have inductor make its table of patterns, once in a process: scalars in its examples would be on the GPU."""
    from torch._inductor.fx_passes import joint_graph

    make = torch.tensor

    def on_cpu(*args: Any, device: object, **options: Any) -> Tensor:
        return make(*args, **options)

    with patch("torch.tensor", on_cpu):
        joint_graph.lazy_init(torch.device("cuda", 0))
