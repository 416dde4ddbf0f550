"""What tensors take of a device's memory, fake ones as real ones do."""

from collections.abc import Callable
from typing import Any, Self
from weakref import KeyedRef

import torch
from torch import Tensor

_BLOCK = 512
"""Bytes: PyTorch's allocator gives memory in multiples of them."""


class DeviceMemory:
    """Bytes of all storages on a device that are alive, and the most by phase; follows those that FSDP2 resizes.

    What libraries take for themselves, such as workspaces and communication buffers, and what lies between blocks is
    not in it.

    Args:
        kind: of the device: ``cuda`` or ``cpu``.
    """

    def __init__(self, kind: str = "cuda") -> None:
        self._kind = kind
        self.live, self.peaks = 0, dict[str, int]()
        self._sizes: dict[int, int] = {}
        self._ends: dict[int, KeyedRef[int, torch.UntypedStorage]] = {}
        self._resize: Callable[..., Any] = torch.UntypedStorage.resize_

    def see(self, phase: str, made: Any) -> None:
        """Count what an operator of a phase has made: a tensor, or several and other things."""
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, Tensor) and tensor.device.type == self._kind:
                self._count(tensor.untyped_storage())
        if self.live > self.peaks.get(phase, 0):
            self.peaks[phase] = self.live

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key not in self._sizes:
            self._ends[key] = KeyedRef(storage, self._forget, key)
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def _forget(self, end: "KeyedRef[int, torch.UntypedStorage]") -> None:
        del self._ends[end.key]
        self.live -= self._sizes.pop(end.key)

    def __enter__(self) -> Self:
        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = self._resize(storage, size)
            if storage._cdata in self._sizes:
                self._count(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
