"""What running code costs, counted at the dispatcher: arithmetic, bytes that pass through memory, bytes alive.

Tensors without storage (`Fakes`) count as real ones do. Those of the meta device would not: they take
attention's formula, which holds every pair of tokens, where a device takes its kernel.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from kernels import JOINT_ATTENTION


@dataclass(frozen=True)
class Work:
    """Floating point operations of matrix products and convolutions, those of attention, and bytes of all else.

    ``float8`` are operations of products in 8 bits.
    ``moved`` are the bytes that other operators read and write, one kernel each, as PyTorch runs them without
    compilation, ``fused`` those of compiled blocks, see `_Fusion`; ``launches`` are all operators that do anything,
    each at least one kernel that the host launches.
    """

    matmul: float = 0
    attention: float = 0
    moved: float = 0
    fused: float = 0
    float8: float = 0
    launches: float = 0

    @property
    def flops(self) -> float:
        """All of them."""
        return self.matmul + self.attention + self.float8

    def __add__(self, other: "Work") -> "Work":
        # By name: `dataclasses.astuple`, which copies deeply, took a sixth of a plan's time.
        return Work(
            self.matmul + other.matmul,
            self.attention + other.attention,
            self.moved + other.moved,
            self.fused + other.fused,
            self.float8 + other.float8,
            self.launches + other.launches,
        )

    def __mul__(self, times: float) -> "Work":
        return Work(*(each * times for each in astuple(self)))


class Counter(TorchDispatchMode):
    """Counts while it is active: ``work``, and tensors that came out of operators, now (``alive``) and at ``peak``.

    PyTorch's own `FlopCounterMode` also wants to know the module, and refuses `torch.autograd.grad` through a
    recomputed block. Its count of a grouped convolution's backward is that of a dense one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work, self.alive, self.peak = Work(), 0, 0
        self._held: dict[int, int] = {}
        self._fusion = _Fusion()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what is compiled runs without it, so that nothing has to keep the compiler out of every call

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compile within it, too: operators come here when they run."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count an operator on its way."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args)  # asked for more often than anything is computed
        taken = list(_tensors((args, kwargs)))
        for tensor in taken:
            self._hold(tensor.untyped_storage(), 0)  # if it has not come out of an operator: weights, inputs
        out = func(*args, **kwargs)
        made = list(_tensors(out))
        for tensor in made:
            self._hold(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        self.work += self._counted(func, args, kwargs, out, taken, made)
        return out

    def _counted(
        self, func: Any, args: tuple, kwargs: dict, out: Any, taken: list[Tensor], made: list[Tensor]
    ) -> Work:
        if work := _work(func, args, kwargs, out):
            return work + Work(fused=self._fusion.library(taken))
        moved = _moved(func, taken, made)
        if not moved:
            return Work()
        return Work(moved=moved, fused=self._fusion.other(taken, made, _sums_tokens(func, args)), launches=1)

    def section(self) -> None:
        """Begin a new peak, and what would be another program if blocks were compiled."""
        self.peak = self.alive
        self._fusion.program += 1

    def _hold(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata not in self._held:
            weakref.finalize(storage, self._release, storage._cdata)
            self._held[storage._cdata] = size
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _release(self, key: int) -> None:
        self.alive -= self._held.pop(key)
        self._fusion.release(key)


class _Fusion:
    """Bytes that compiled code reads and writes around products and attention, which libraries compute.

    Within a program operators are fused: what one makes and others use passes through no memory. What a program uses
    of what libraries or other programs made is read once, and what those use of its own results is written once. Sums
    over tokens, such as gradients of biases, are kernels of their own. That is the least; on the other hand, a
    backward pass finds what PyTorch's own autograd keeps, where compiled code keeps less and computes it again.
    """

    def __init__(self) -> None:
        self.program = 0
        self._made: dict[int, int] = {}
        """By storage: results that are in no memory yet, and the program that made them."""
        self._read: dict[int, int] = {}
        """By storage: the last program that read it."""

    def other(self, taken: list[Tensor], made: list[Tensor], apart: bool) -> int:
        """Bytes for an operator that a program may have, in a kernel ``apart`` or with others."""
        moved = 0
        for key, size in _storages(taken):
            if self._made.get(key) == self.program and not apart:
                continue
            moved += self._written(key, size)
            if apart or self._read.get(key) != self.program:
                self._read[key] = self.program
                moved += size
        for key, _ in _storages(made):
            self._made[key] = self.program
        return moved

    def library(self, taken: list[Tensor]) -> int:
        """Bytes for the operands of a library's function."""
        return sum(self._written(key, size) for key, size in _storages(taken))

    def _written(self, key: int, size: int) -> int:
        return 0 if self._made.pop(key, None) is None else size

    def release(self, key: int) -> None:
        """A storage is no longer there."""
        self._made.pop(key, None)
        self._read.pop(key, None)


def _storages(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Keys and bytes, each once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return list({storage._cdata: (storage._cdata, storage.nbytes()) for storage in storages}.values())


def _work(func: Any, args: tuple, kwargs: dict, out: Any) -> Work | None:
    if func is torch.ops.aten.convolution_backward.default:
        grad, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
        flops = conv_flop_count(x.shape, weight.shape, grad.shape, transposed) * sum(wanted[:2])
        return Work(flops, launches=1)
    if func.name().startswith(JOINT_ATTENTION):
        return Work(attention=_fused_attention(func, args), launches=1)
    if func.overloadpacket not in flop_registry:
        return None
    flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
    if func.overloadpacket is torch.ops.aten._scaled_mm:
        return Work(float8=flops, launches=1)
    return Work(attention=flops, launches=1) if "attention" in func.name() else Work(flops, launches=1)


def _sums_tokens(func: Any, args: tuple) -> bool:
    """Whether an operator sums over tokens and not over their channels, which are the last dimension."""
    if func is not torch.ops.aten.sum.dim_IntList:
        return False
    last = args[0].dim() - 1
    return not {last, -1} & {*(args[1] or (last,))}


def _fused_attention(func: Any, args: tuple) -> int:
    """FLOP of this repository's kernel by PyTorch's formulas for its own: a backward pass is five products."""
    backward = func.name().startswith(JOINT_ATTENTION + "_backward")
    (batch, image, heads, width), text = args[0].shape, args[1 if backward else 3].shape[1]
    return (5 if backward else 2) * 2 * batch * heads * (image + text) ** 2 * width


def _moved(func: Any, taken: list[Tensor], made: list[Tensor]) -> int:
    """Bytes in and out; none if what comes out is a view of what went in."""
    there = {tensor.untyped_storage()._cdata for tensor in taken}
    if not func._schema.is_mutable and all(tensor.untyped_storage()._cdata in there for tensor in made):
        return 0
    return sum(prod(tensor.shape) * tensor.itemsize for tensor in (*taken, *made))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


@contextmanager
def gradients_dropped(module: nn.Module) -> Iterator[None]:
    """Parameters lose their gradient as soon as it is there, as those that an engine reduces do."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in module.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_linear = torch.nn.functional.linear


class _KeepsInput(torch.autograd.Function):
    """A linear layer with frozen weights that keeps its input for the backward pass, as DeepSpeed's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] @ ctx.saved_tensors[1], None, None


@contextmanager
def inputs_kept() -> Iterator[None]:
    """Within it linear layers with frozen weights keep their inputs."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made: Tensor = _KeepsInput.apply(x, weight, bias)
        return made

    with patch("torch.nn.functional.linear", linear):
        yield
