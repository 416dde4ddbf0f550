"""Tensors without data on a GPU that is not there, and what the host asks of it."""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_map

from ladd_dist.errors import LaddError
from ladd_dist.planning.dry_run.compiled import Programs, compiling
from ladd_dist.planning.dry_run.frames import caller
from ladd_dist.planning.dry_run.memory import DeviceMemory
from ladd_dist.planning.fakes import Fakes
from ladd_dist.planning.traffic import TrafficCounter

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default: 0, _aten.copy_.default: 1}
"""Operators that may copy between memories -> which argument is copied."""
_ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    _aten._local_scalar_dense.default: lambda tensor: torch.ones((), dtype=tensor.dtype).item(),
    _aten.equal.default: lambda tensor: True,
}
"""Operators that give the host a value -> one to go on with: 1, and what a check hopes for."""
_SDP_CHECKS = {
    SDPBackend.FLASH_ATTENTION: can_use_flash_attention,
    SDPBackend.CUDNN_ATTENTION: can_use_cudnn_attention,
    SDPBackend.EFFICIENT_ATTENTION: can_use_efficient_attention,
}
"""They also say no to what `sdpa_kernel` has turned off."""
_PRODUCTS = (
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
)
"""Operators whose floating tensors a GPU wants in one dtype; on fake ones torch does not look."""


_NO_LAUNCH = (
    torch.ops.prim.device.default,
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten._unsafe_view.default,
)
"""Operators that do nothing on the device, though their result is none that they were given."""
_RECORD = "fsdp::record_grad_output_stream"
"""For the allocator; by name, since only FSDP2 makes it known."""


@dataclass(frozen=True)
class Wait:
    """The host waits for the device.

    Attributes:
        what: the operator, or what it does.
        line: file and number of the line of this project that has it done.
        phase: the phase of the iteration, as its clock names it.
    """

    what: str
    line: str
    phase: str

    def __str__(self) -> str:
        return f"{self.line} ({self.what}, {self.phase})"


class FakeDevice(TorchDispatchMode):
    """Makes all tensors on a GPU fake and leaves those on the CPU as they are; knows who waits for them.

    A large network is a hundred thousand operators: what is done here for each of them is most of the time.

    Args:
        phase: tells the phase that is under way.
    """

    def __init__(self, phase: Callable[[], str]) -> None:
        super().__init__()
        self._fake = Fakes(allow_non_fake_inputs=True)
        self._phase, self._waited = phase, _waits()
        self.memory, self.traffic, self.programs = DeviceMemory(), TrafficCounter(), Programs(self._launch)
        self.launches, self.moved = Counter[str](), Counter[str]()
        self.waits: list[Wait] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what is compiled runs without it, so that nothing has to keep the compiler out of every call

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compile within it, too: a program's operators come here when it runs."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operator, on fake tensors if one of them is on the GPU or is to be."""
        kwargs = kwargs or {}
        if any(map(_wraps, types)):
            return NotImplemented  # a sharded tensor first says what is done with this rank's part
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return func(*args, **kwargs)  # it asks for shapes alone, of tensors that are nowhere
        device = kwargs.get("device")
        to_device = device is not None and torch.device(device).type == "cuda"
        if not to_device and not any(issubclass(kind, FakeTensor) for kind in types):
            return func(*args, **kwargs)
        if func is _aten._fused_sdp_choice.default:
            return _sdp_choice(*args)
        self._see_waits()
        if waited := self._waiting(func, args, kwargs):
            self._wait(waited)
        if func in _ANSWERS:
            return _ANSWERS[func](args[0])
        if func is _aten.record_stream.default:
            return None  # for an allocator, and has no fake
        if func in _PRODUCTS:
            _check_dtypes(func, args)
        self.traffic.see(func, args)
        if _is_launched(func):
            self._launch(0)
        if _has_real(args) or _has_real(kwargs.values()):
            args, kwargs = tree_map(self._as_fake, (args, kwargs))
        try:
            # What an operator comes to within the mode; to enter it takes longer than the operator itself.
            result = self._fake.dispatch(func, types, args, kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise LaddError(f"{caller()}: {func} waits for the device and its result has no shape before") from None
        self.memory.see(self._phase(), result)
        return result

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """What another thread would do, as a phase of its own. The host does not wait with it."""
        self._see_waits()
        own, known = self._phase, len(self.waits)
        self._phase = lambda: phase
        try:
            yield
        finally:
            self._see_waits()
            del self.waits[known:]
            self._phase = own

    def _launch(self, moved: int) -> None:
        self.launches[self._phase()] += 1
        self.moved[self._phase()] += moved

    def _as_fake(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return self._fake.from_tensor(value.detach())  # remembered by the mode, which must not hold the original
        return value

    def _waiting(self, func: Any, args: tuple, kwargs: dict) -> str:
        """What makes the host wait, or an empty string."""
        if func in _ANSWERS and args[0].device.type == "cuda":
            return str(func)
        if func not in _COPIES:
            return ""
        source = args[_COPIES[func]].device.type
        copies = func is _aten._to_copy.default
        target = torch.device(kwargs.get("device") or source).type if copies else args[0].device.type
        if source == target or kwargs.get("non_blocking") or args[2:3] == (True,):
            return ""
        return f"copy from {source} to {target}"

    def _see_waits(self) -> None:
        """For what is no operator."""
        if (waited := _waits()) != self._waited:
            self._waited = waited
            self._wait("a stream, an event or the device is waited for, before this line's operator")

    def _wait(self, what: str) -> None:
        self.waits.append(Wait(what, caller(), self._phase()))


@cache
def _is_launched(func: Any) -> bool:
    """Whether an operator has at least one kernel launched: it does not make a view, or room alone."""
    schema = func._schema
    if func in _NO_LAUNCH or func.name() == _RECORD:
        return False
    return schema.is_mutable or not any(result.alias_info for result in schema.returns)


@cache
def _wraps(kind: type) -> bool:
    """Whether it is a tensor around others, a sharded or quantized one."""
    return kind is not FakeTensor and is_traceable_wrapper_subclass_type(kind)


def _has_real(values: Iterable[Any]) -> bool:
    """Whether a tensor that is not fake is among an operator's arguments."""
    for value in values:
        if isinstance(value, FakeTensor):
            continue
        if isinstance(value, Tensor) or (isinstance(value, list | tuple) and _has_real(value)):
            return True
    return False


def _sdp_choice(query: Tensor, key: Tensor, value: Tensor) -> int:
    """What PyTorch would choose on the card: it looks at shapes alone, but gives no answer for fake tensors."""
    asked = SDPAParams(query, key, value, None, 0.0, False, False)
    return next((backend.value for backend, runs in _SDP_CHECKS.items() if runs(asked)), SDPBackend.MATH.value)


def _check_dtypes(func: Any, args: tuple) -> None:
    if len(dtypes := {str(value.dtype) for value in args if isinstance(value, Tensor)}) > 1:
        raise RuntimeError(
            f"{caller()}: tensors of {func} must have the same dtype, and are {', '.join(sorted(dtypes))}"
        )


@cache
def _counter() -> ctypes.c_long:
    return ctypes.c_long.in_dll(ctypes.CDLL(None), "ladd_waits")


def _waits() -> int:
    """How often the stand-in for the CUDA runtime was waited for, see ``cuda.c``."""
    return _counter().value


@contextmanager
def on_fake_device(phase: Callable[[], str], compiles: bool = False) -> Iterator[FakeDevice]:
    """Within it, whatever is made on the GPU has no data.

    Args:
        compiles: what is to be compiled, which runs as it is otherwise.
    """
    device = FakeDevice(phase)
    lifts, overwrites = (
        torch._C._only_lift_cpu_tensors(),
        torch.__future__.get_overwrite_module_params_on_conversion(),
    )
    # torch.tensor(..., device="cuda") copies behind the dispatcher's back; Module.to puts data into the old tensor.
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with ExitStack() as stack:
            if compiles:
                stack.enter_context(compiling(device.programs))
            else:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(device.memory)
            stack.enter_context(device)
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
