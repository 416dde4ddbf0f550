"""Blocks that are computed again in the backward pass, but for what is dear to compute and cheap to keep."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    _CachedTorchDispatchMode,
    _CachingTorchDispatchMode,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from kernels import JOINT_ATTENTION
from ladd_dist.models.adapters import adapters, adapters_count

_ATTENTION = {
    JOINT_ATTENTION,
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
}
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::_scaled_mm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Operators, and which argument is the first of the two factors."""
_WITHOUT_BIAS = "aten::mm", "aten::bmm"


def is_kept(operator: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an operator's result is kept: attention's, and a product's unless that is wider than its rows were.

    Which is what the planner counts to be best, see docs/planning.md: a wider result takes most memory for what it
    costs. Of few rows it takes little, and reading the weights again would cost more.

    Args:
        operator: its name, such as ``aten::mm``.
    """
    if operator in _ATTENTION:
        return True
    if operator not in _PRODUCTS:
        return False
    first, second = arguments[_PRODUCTS[operator] :][:2]
    rows, (inner, wide) = first.shape[-2], second.shape[-2:]
    # A compiled block's rows are of any number: to ask would make a variant for each answer.
    return inner >= wide or (isinstance(rows, int) and rows <= inner)


def _policy(_: object, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    keep = is_kept(operator.name(), arguments)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


class _First(_CachingTorchDispatchMode):
    """Under which a block runs first. PyTorch's own takes a result for what it is at the end of the pass.

    DeepSpeed's linear layers add the bias to it in place, behind a view by which PyTorch does not notice.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        return out.clone() if func.name() in _WITHOUT_BIAS and is_kept(func.name(), args) else out


class _Again(_CachedTorchDispatchMode):
    """Under which a block runs again. PyTorch's own wants every operator to run as often as it first did.

    The hooks with which DeepSpeed gathers the weights of layers inside of a block do not.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.name() in _ATTENTION or func.name() in _PRODUCTS:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, again = create_selective_checkpoint_contexts(_policy)
    first.__class__, again.__class__ = _First, _Again  # what the two are made of differs between versions of PyTorch
    return first, again


def _contexts_of_compiler() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_policy)


def recompute_selectively(block: nn.Module, selectively: bool) -> None:
    """Have a block's forward keep for its backward pass what `is_kept`, or what it always did.

    The forward does so and not the block's call: the hooks with which engines gather and release a block stay
    outside. Blocks that are to be compiled are compiled afterwards, this included.
    """
    forward: Any = type(block).forward
    if selectively:
        block.forward = MethodType(_selective(forward), block)
    elif "forward" in vars(block) and vars(block)["forward"].__func__ is _selective(forward):
        del block.forward


@cache
def _selective(forward: Callable[..., Any]) -> Callable[..., Any]:
    """One for all blocks of a kind, as what is compiled must be."""

    def selective(block: nn.Module, *inputs: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return forward(block, *inputs)
        if torch.compiler.is_compiling():  # it is not run again by Python, with adapters as they then may be
            return checkpoint(forward, block, *inputs, use_reentrant=False, context_fn=_contexts_of_compiler)
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": _contexts}
        return checkpoint(run_adapted, block, MethodType(forward, block), adapters_count(block), *inputs, **options)

    return selective


def run_adapted(block: nn.Module, run: Callable[..., Any], adapter: bool, *inputs: Tensor) -> Any:
    """A block with its adapters as they were when it first ran: by the backward pass they may be set otherwise.

    Args:
        run: the block, or its forward.
    """
    with adapters(block, adapter):
        return run(*inputs)
