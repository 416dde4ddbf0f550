"""Operators of this package in PyTorch's dispatcher: what `torch.library.custom_op` does, in less of the host's time.

The host's time is a step's where a GPU waits for it, as it did for a quarter of an 8B step (docs/gpu.md). A call of
`custom_op` that builds a graph goes through an autograd function made for any operator, in three times the time that
these need.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

NAMESPACE = "ladd_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_below_autograd = torch._C._AutoDispatchBelowAutograd


def define(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> OpOverload:
    """An operator that changes none of its arguments and returns none of their memory; not differentiable yet.

    Args:
        function: what it does, on every device; its annotations are the operator's.
        fake: its results for tensors without storage.
    """
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, torch._disable_dynamo(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    operator: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def differentiate(
    operator: OpOverload, remember: Callable[[Any, tuple, tuple], None], backward: Callable[..., tuple]
) -> None:
    """Give an operator, whose tensors are arguments of their own and whose results a tuple, its derivative.

    Args:
        remember: ``remember(ctx, arguments, results)`` saves what ``backward`` needs.
        backward: ``backward(ctx, *gradients)``, one for each argument; a gradient is None for a result without one.
    """

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            with _below_autograd():
                results: tuple[Tensor, ...] = operator(*arguments)
            ctx.set_materialize_grads(False)
            remember(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
            return backward(ctx, *gradients)

    def run(*arguments: Any) -> Any:
        if _needs_graph(arguments):
            return Differentiated.apply(*arguments)
        with _below_autograd():
            return operator(*arguments)

    _LIBRARY.impl(operator, torch._disable_dynamo(run), "Autograd")


def refuse(operator: OpOverload, error: Callable[[], Exception]) -> None:
    """Let whoever differentiates through an operator meet an error, such as through a backward pass."""

    class Refused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tensors[:count]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> None:
            raise error()

    def run(*arguments: Any) -> Any:
        with _below_autograd():
            results = operator(*arguments)
        if not _needs_graph(arguments):
            return results
        single = isinstance(results, Tensor)
        given = [results] if single else list(results)
        refused = Refused.apply(len(given), *given, *_tensors(arguments))
        return refused[0] if single else type(results)(refused)

    _LIBRARY.impl(operator, torch._disable_dynamo(run), "Autograd")


def _needs_graph(arguments: tuple) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(arguments))


def _tensors(arguments: tuple) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from argument
