"""Tensors without storage, by PyTorch's mode for them, which remembers operators by less than it does itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, _DispatchCacheKey

_PLAIN = int, float, bool, str, type(None), torch.dtype, torch.layout, torch.memory_format


class Fakes(FakeTensorMode):
    """A `FakeTensorMode` for code that is not traced.

    To know whether it has met an operator on such arguments PyTorch's own asks every tensor seventeen questions, most
    of them about sparse, quantized or symbolic ones: more than a quarter of an 8B iteration's time. Seven tell apart
    dense tensors of real numbers, which are all that is met here; sparse ones and constants are left to it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what is compiled runs without it, so that nothing has to keep the compiler out of every call

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compile within it, too: operators come here when they run."""
        return True

    def _cache_key(self, state: Any, func: Any, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
        key: list[object] = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        if self._tell(key, args) and self._tell(key, kwargs.items()):
            return _DispatchCacheKey(tuple(key))
        return super()._cache_key(state, func, args, kwargs)

    def _tell(self, key: list[object], values: Iterable[object]) -> bool:
        """Whether all of them are of the kinds that it can put into a key."""
        for value in values:
            if isinstance(value, FakeTensor):
                if value.fake_mode is not self or value.constant is not None or value.layout is not torch.strided:
                    return False
                place = value.fake_device, value.storage_offset(), value.untyped_storage().nbytes()
                key += value.dtype, value.shape, value.stride(), *place, value.requires_grad
            elif isinstance(value, list | tuple):
                key.append(len(value))
                if not self._tell(key, value):
                    return False
            elif isinstance(value, _PLAIN):
                key += type(value), value  # 1 and 1.0 are equal, and give different dtypes
            else:
                return False
        return True

    def _output_from_cache_entry(self, state: Any, entry: Any, *others: Any) -> Any:
        """Without a look for a tracer first. What else it is given differs between versions of PyTorch."""
        made = [self._get_output_tensor_from_cache_entry(state, info, *others) for info in entry.output_infos]
        return tuple(made) if entry.is_output_tuple else made[0]
