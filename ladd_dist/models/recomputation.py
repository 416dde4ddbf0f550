"""Blocks that are computed again in the backward pass, but for what is dear to compute and cheap to keep."""

import logging
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
from ladd_dist.config import Recomputation
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

# It warns whoever recomputes selectively that nothing may be written in place: in a compiled block nothing is.
logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def is_kept(operator: str, arguments: tuple[Any, ...], compiled: bool = False) -> bool:
    """Whether an operator's result is kept: attention's, and a product's unless that is wider than its rows were.

    Which is what the planner counts to be best, see docs/planning.md: a wider result takes most memory for what it
    costs. Of few rows it takes little, and reading the weights again would cost more.

    Args:
        operator: its name, such as ``aten::mm``.
        compiled: whether for code that serves any number of rows but one, which has code of its own.
    """
    if operator in _ATTENTION:
        return True
    if operator not in _PRODUCTS:
        return False
    first, second = arguments[_PRODUCTS[operator] :][:2]
    rows, (inner, wide) = first.shape[-2], second.shape[-2:]
    if compiled:  # to ask about open sizes would make a variant for each answer
        return inner >= wide or (isinstance(rows, int) and rows == 1)
    return inner >= wide or rows <= inner


def _policy(_: object, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    keep = is_kept(operator.name(), arguments)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _policy_of_compiler(_: object, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    keep = is_kept(operator.name(), arguments, compiled=True)
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
    return create_selective_checkpoint_contexts(_policy_of_compiler)


def recompute_when_compiled(block: nn.Module, selectively: bool) -> None:
    """Have a block's forward, if it is compiled from now on, keep what `is_kept`, or what it always did."""
    forward: Any = type(block).forward
    if selectively:
        block.forward = MethodType(_selective(forward), block)
    elif _is_selective(block):
        del block.forward


@cache
def _selective(forward: Callable[..., Any]) -> Callable[..., Any]:
    """One for all blocks of a kind, as what is compiled must be."""

    def selective(block: nn.Module, *inputs: Tensor) -> Any:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return checkpoint(forward, block, *inputs, use_reentrant=False, context_fn=_contexts_of_compiler)
        return forward(block, *inputs)

    return selective


def _is_selective(block: nn.Module) -> bool:
    """As `recompute_when_compiled` left it, and not compiled."""
    return "forward" in vars(block) and vars(block)["forward"].__func__ is _selective(type(block).forward)


def run_recomputed(block: nn.Module, what: Recomputation, adapted: bool, *inputs: Tensor) -> Any:
    """What a block makes of its inputs; in the backward pass it runs again, but for what it keeps.

    With it run the hooks by which engines gather, cast and release its weights. What was compiled selectively needs
    nothing of this.

    Args:
        adapted: whether it has adapters: they are as they are now when it runs again.
    """
    if not what or (what == "selective" and not _is_selective(block)):
        return block(*inputs)
    options: dict[str, Any] = {"use_reentrant": False} | ({"context_fn": _contexts} if what == "selective" else {})
    if not adapted:
        return checkpoint(block, *inputs, **options)
    return checkpoint(_run_adapted, block, adapters_count(block), *inputs, **options)


def _run_adapted(block: nn.Module, adapter: bool, *inputs: Tensor) -> Any:
    with adapters(block, adapter):
        return block(*inputs)
