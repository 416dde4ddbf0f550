"""What a call costs in numbers that no machine changes: operators, and the arithmetic of matrix products."""

from collections import Counter
from typing import Any

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
