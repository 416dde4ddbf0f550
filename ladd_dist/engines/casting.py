"""fp32 weights in the compute precision while they are used: all of a block's by one operator, and its gradients.

Autocast would cast them one by one, wherever they are used, and autograd their gradients: a third of all that a host
launches for the passes of an SD3 block.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ladd_dist.engines.blueprint import trainable, wrap_points


def cast_in_passes(module: nn.Module, dtype: torch.dtype) -> None:
    """Have each wrap point, and what is outside of them, run on copies of its trained weights in ``dtype``.

    The copies of a block are made when it is called and are its parameters until it returns. A graph keeps them, but
    of a block that is called again in the backward pass (`torch.utils.checkpoint`), where they are made again.
    """
    if all(weight.dtype == dtype for weight in trainable(module).values()):
        return
    blocks = wrap_points(module)
    for block in blocks:
        _Copies(block.modules(), dtype).serve(block)
    within = {each for block in blocks for each in block.modules()}
    _Copies((each for each in module.modules() if each not in within), dtype).serve(module)


class _Copies:
    """Of the trained weights of some modules, in their place for a while."""

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self._dtype = dtype
        # By weight, since one may have several names.
        self._places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}
        for module in modules:
            for name, weight in module._parameters.items():
                if weight is not None and weight.requires_grad:
                    self._places.setdefault(weight, []).append((module._parameters, name))

    def serve(self, module: nn.Module) -> None:
        """Be there whenever a module runs."""
        if self._places:
            module.register_forward_pre_hook(lambda *_: self._put(_Cast.apply(self._dtype, *self._places)))
            module.register_forward_hook(lambda *_: self._put(self._places), always_call=True)

    def _put(self, weights: Iterable[Tensor]) -> None:
        for weight, places in zip(weights, self._places.values(), strict=True):
            for parameters, name in places:
                parameters[name] = weight


class _Cast(torch.autograd.Function):
    """Copies of weights in another dtype. Their gradients are added to the weights' own where there are some."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        used = {weight: g for weight, g in zip(ctx.weights, gradients, strict=True) if g is not None}
        if not used:
            return None, *gradients
        new = {weight: torch.empty_like(weight) for weight in used}
        torch._foreach_copy_(list(new.values()), list(used.values()))
        sums = [weight.grad for weight in used if weight.grad is not None]
        if len(sums) < len(new):  # in a first micro-batch; later autograd would add one by one
            return None, *map(new.get, ctx.weights)
        torch._foreach_add_(sums, list(new.values()))
        return (None,) * (1 + len(gradients))
