"""torch.compile for a network's blocks, one by one and never silently given up."""

from collections.abc import Callable, Iterable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

VARIANTS = 6
"""Without gradient, with one, and with one for all inputs but the text, as in a frozen network's first block; each
for several samples and for a single one, whose size torch does not leave open. Twice as many for blocks that are
trained in part: they have adapters, and run with them and without."""
_OPTIONS: dict[str, Any] = {"fullgraph": True, "dynamic": True, "isolate_recompiles": True}

_VECTOR_BITS = {"AVX512": 512, "AVX2": 256, "DEFAULT": 1}
"""Of what PyTorch's own kernels use here, as `ATEN_CPU_CAPABILITY` may have limited it."""


def is_compiled(block: nn.Module) -> bool:
    """Whether `compile_blocks` had it."""
    return hasattr(block.forward, "_torchdynamo_orig_callable")


def compile_blocks(blocks: Iterable[nn.Module], **options: Any) -> None:
    """Have each block's forward compiled when it first runs, together with all blocks of the same shapes.

    Sizes of inputs stay open, so that one variant serves every aspect ratio and batch. The forward is compiled and
    not the call: the hooks with which engines gather and release a block stay outside. What cannot be compiled
    whole, and more than `VARIANTS` of one kind of block, raise when they run, where torch would go on uncompiled.

    Args:
        options: of `torch.compile`, in the place of those above.
    """
    import torch._inductor.config as inductor  # a second of imports, for runs that compile

    # The key by which inductor finds its code on disk holds its settings and not the width that it takes from the
    # processor where they leave it open: code for 512 bits gave NaN in a process of 256. None leaves others open.
    inductor.cpp.simdlen = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    # With a tanh made of exp, GELU takes a third of the time on a CPU. It is less exact near 0; GELU adds 1 to it.
    inductor.cpp.use_decompose_tanh = True
    forwards: dict[object, Callable[..., Any]] = {}
    for block in blocks:
        kind = type(block), tuple((name, p.shape) for name, p in block.named_parameters())
        if kind not in forwards:
            in_part = len({p.requires_grad for p in block.parameters()}) > 1
            limit = 2 * VARIANTS if in_part else VARIANTS
            own: Any = block.forward
            chosen = _OPTIONS | {"recompile_limit": limit} | options
            forwards[kind] = _without_views(torch.compile(own.__func__, **chosen))
        block.forward = MethodType(forwards[kind], block)


def _without_views(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Given no views: FSDP2 hands a block views in the forward pass and none when it runs again in the backward pass,
    and torch makes a variant for each.
    """

    @wraps(compiled)
    def forward(block: nn.Module, *inputs: Any, **options: Any) -> Any:
        return compiled(block, *map(_no_view, inputs), **{name: _no_view(value) for name, value in options.items()})

    return forward


def _no_view(value: Any) -> Any:
    """The same memory, though no view of another tensor for autograd. Nothing is written to a block's inputs."""
    return torch.ops.aten._unsafe_view(value, value.shape) if isinstance(value, Tensor) else value
