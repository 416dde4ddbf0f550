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
    compilation; ``launches`` are all operators that do anything, each at least one kernel that the host launches.
    """

    matmul: float = 0
    attention: float = 0
    moved: float = 0
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
        self.work += _work(func, args, kwargs, out) or _other(_moved(func, taken, made))
        return out

    def forget_peak(self) -> None:
        """Begin a new one."""
        self.peak = self.alive

    def _hold(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata not in self._held:
            weakref.finalize(storage, self._release, storage._cdata)
            self._held[storage._cdata] = size
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _release(self, key: int) -> None:
        self.alive -= self._held.pop(key)


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


def _other(moved: int) -> Work:
    return Work(moved=moved, launches=1 if moved else 0)


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
