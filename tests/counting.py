"""What a call costs in numbers that no machine changes: operators, arithmetic of matrix products, tensors' memory."""

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operators(TorchDispatchMode):
    """Counts what reaches the dispatcher while it is active, backward passes included.

    ``calls`` is by operator's name; ``flops`` are those of matrix products, convolutions and attention, as PyTorch
    counts them (its own `FlopCounterMode` also wants to know the module and refuses `torch.autograd.grad`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.name().split(".")[0]] += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors on the CPU that came out of operators while it is active; ``peak`` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._held = 0, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self._held:
            weakref.finalize(storage, self._held.pop, storage._cdata)
            self._held[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, sum(self._held.values()))
