"""``python -m kernels.bench modulation``: adaLN's elementwise passes against eager PyTorch and torch.compile.

The kernels stay only if this shows them faster than torch.compile; the trainer does not use them before.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.bench.case import Case, Check, Problem, Run, relative_error
from kernels.bench.compiled import compile_whole
from kernels.modulation.op import gated_residual, modulated_layer_norm
from kernels.modulation.reference import gated_residual_reference, modulated_layer_norm_reference

OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[bool, bool, bool]]] = {
    "modulated_layer_norm": (modulated_layer_norm, modulated_layer_norm_reference, (False, True, True)),
    "gated_residual": (gated_residual, gated_residual_reference, (False, True, False)),
}
"""Ours, the definition, and which arguments a sample's tokens share."""
LARGE = {"tokens": 4096, "width": 2432}
BATCHES = (1, 2, 4)


def inputs(op: str, shape: Mapping[str, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Random arguments."""
    full, draw = (shape["batch"], shape["tokens"], shape["width"]), torch.Generator(device).manual_seed(0)
    sizes = [(full[0], full[2]) if shared else full for shared in OPERATIONS[op][2]]
    return [torch.randn(size, generator=draw, device=device).to(dtype) for size in sizes]


def _run(direction: str, function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_(direction == "both") for t in tensors]
    out = function(*leaves)
    if direction == "forward":
        return (out,)
    return out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out) + 0.1 * out.detach())


def problem(op: str, direction: str, shape: Mapping[str, int]) -> Problem:
    """Providers over the same inputs, and the float64 answer."""
    tensors = inputs(op, shape, torch.bfloat16, "cuda")
    ours, definition, _ = OPERATIONS[op]
    functions: dict[str, Any] = {
        "eager": definition,
        "compiled": compile_whole(definition),
        "triton": partial(ours, implementation="triton"),
    }
    providers: dict[str, Run] = {name: partial(_run, direction, f, tensors) for name, f in functions.items()}
    return Problem(providers, {}, _run(direction, definition, [t.double() for t in tensors]))


def cases() -> Iterator[Case]:
    """Both operations, forward and with backward."""
    directions: tuple[Literal["forward"], Literal["both"]] = ("forward", "both")
    for op, (_, _, shared) in OPERATIONS.items():
        for batch in BATCHES:
            shape = LARGE | {"batch": batch}
            tensor = 2 * batch * LARGE["tokens"] * LARGE["width"]
            whole = shared.count(False)
            for direction in directions:
                # Backward reads the output's gradient and what was saved (one tensor), and writes as many as came in,
                # but for the residual's own, which is the output's.
                moved = whole + 1 if direction == "forward" else whole + 1 + 3
                operations = 5 * tensor if direction == "forward" else 15 * tensor
                prepare = partial(problem, op, direction, shape)
                yield Case(op, "raw", direction, shape, "bf16", operations, moved * tensor, prepare)


def checks() -> Iterator[Check]:
    """Ragged tokens and an odd width against float64, by whatever runs on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for op, (ours, definition, _) in OPERATIONS.items():
        tensors = inputs(op, {"batch": 3, "tokens": 13, "width": 152}, torch.float32, device)
        want = _run("both", definition, [t.double() for t in tensors])
        yield Check(f"{op} fp32 on {device}", relative_error(_run("both", ours, tensors), want), 1e-5)
