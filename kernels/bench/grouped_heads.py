"""``python -m kernels.bench grouped_heads``: all conv heads at the 8B teacher's size, against library calls.

Scope ``raw`` goes from projected tokens to logits. ``end_to_end`` is the heads' share of the discriminator's step:
from a block's features each to the hinge losses' per-head means, where library providers stack features for one
batched projection.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.bench.case import Case, Check, Problem, Run, relative_error
from kernels.bench.compiled import compile_whole, graphed
from kernels.bench.library_heads import library_heads, looped_heads
from kernels.heads.op import grouped_heads
from kernels.heads.projection import project_tokens
from kernels.heads.reference import grouped_heads_reference
from kernels.heads.weights import HeadWeights
from kernels.hinge.op import hinge_per_head
from kernels.hinge.reference import hinge_reference

Heads = Callable[[Tensor, HeadWeights, int], Tensor]
LARGE = {"heads": 38, "height": 64, "width": 64, "features": 2432, "k": 256, "n": 128, "groups": 32}
BATCHES = (1, 2, 4)


def inputs(shape: Mapping[str, int], dtype: torch.dtype, device: str) -> dict[str, Tensor | list[Tensor]]:
    """Random features, projected tokens and fp32 parameters."""
    draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    g, b, k, n, d = (shape[key] for key in ("heads", "batch", "k", "n", "features"))
    grid = (shape["height"], shape["width"])
    layers = [
        (draw(g * c, k, 3, 3) / math.sqrt(9 * k), draw(g * c), 1 + 0.1 * draw(g * c), draw(g * c)) for c in (k, n)
    ]
    return {
        "x": draw(g, b, *grid, k).to(dtype),
        "features": [draw(b, grid[0] * grid[1], d).to(dtype) for _ in range(g)],
        "project": draw(g, d, k) / math.sqrt(d),
        "weights": [*layers[0], *layers[1], draw(g, b, n) / math.sqrt(n), draw(g)],
    }


def problem(scope: str, direction: str, shape: Mapping[str, int], dtype: torch.dtype, device: str) -> Problem:
    """Providers over the same inputs, and the float64 answer."""
    tensors = inputs(shape, dtype, device)
    run = partial(_run, scope, direction, shape, tensors)
    providers: dict[str, Run] = {
        "loop": partial(run, looped_heads, False),
        "grouped": partial(run, library_heads, False),
    }
    absent = {}
    if device == "cuda":
        providers["loop compiled"] = partial(run, compile_whole(looped_heads), False)
        providers["grouped compiled"] = partial(run, compile_whole(library_heads), False)
        providers["grouped, CUDA graph"] = graphed(providers["grouped"])
        providers["triton"] = partial(run, partial(grouped_heads, implementation="triton"), True)
        providers["triton, CUDA graph"] = graphed(providers["triton"])
    else:
        absent = {"triton": "it needs a GPU", "compiled": "timed on a GPU only"}
    wide = {k: [t.double() for t in v] if isinstance(v, list) else v.double() for k, v in tensors.items()}
    return Problem(providers, absent, _run(scope, direction, shape, wide, grouped_heads_reference, False))


def _run(
    scope: str, direction: str, shape: Mapping[str, int], tensors: Mapping[str, Any], heads: Heads, fused: bool
) -> tuple[Tensor, ...]:
    """Outputs, and gradients of all inputs where they are asked for."""
    weights = [w.detach().requires_grad_(direction == "both") for w in tensors["weights"]]
    raw = scope == "raw"
    start = [tensors["x"]] if raw else [tensors["project"]]
    leaves = [t.detach().requires_grad_(direction == "both") for t in start]
    x = leaves[0] if raw else _project(tensors["features"], leaves[0], shape, fused)
    logits = heads(x, HeadWeights(*weights), shape["groups"])
    outputs = (logits,) if raw else _losses(logits, fused)
    if direction == "forward":
        return outputs
    total = outputs[0].sum()
    return *(o.detach() for o in outputs), *torch.autograd.grad(total, [*leaves, *weights])


def _losses(logits: Tensor, fused: bool) -> tuple[Tensor, ...]:
    """Loss, mean logit and accuracy per head, of logits that stand for real and fake."""
    return tuple(hinge_per_head(logits, "real", "triton") if fused else hinge_reference(logits, "real"))


def _project(features: list[Tensor], weight: Tensor, shape: Mapping[str, int], fused: bool) -> Tensor:
    if fused:
        bias = weight.new_zeros(len(features), 1, weight.shape[2])
        out = project_tokens(features, weight, bias, features[0].dtype)
    else:
        stacked = torch.stack(features).flatten(1, 2)
        out = torch.bmm(stacked, weight.to(stacked.dtype)).unflatten(1, (shape["batch"], -1))
    return out.unflatten(2, (shape["height"], shape["width"]))


def work(scope: str, direction: str, shape: Mapping[str, int]) -> tuple[int, int]:
    """FLOPs and bytes that a bf16 pass cannot do without: inputs read once, outputs written once."""
    g, k, n, d = (shape[key] for key in ("heads", "k", "n", "features"))
    positions = shape["batch"] * shape["height"] * shape["width"]
    project = 0 if scope == "raw" else d * k
    conv = 9 * k * (k + n) + n
    weights = 4 * g * (9 * k * (k + n) + project)
    read = 2 * g * positions * (k if scope == "raw" else d)
    if direction == "forward":
        return 2 * g * positions * (conv + project), read + weights
    # Backward: every product twice, but none by the features, which have no gradient in the discriminator's step.
    return 2 * g * positions * (3 * conv + 2 * project), (2 if scope == "raw" else 1) * read + 2 * weights


def cases() -> Iterator[Case]:
    """Both scopes and directions at the sizes that decide ``kernels.heads``."""
    scopes: tuple[Literal["raw"], Literal["end_to_end"]] = ("raw", "end_to_end")
    directions: tuple[Literal["forward"], Literal["both"]] = ("forward", "both")
    for batch in BATCHES:
        shape = LARGE | {"batch": batch}
        for scope in scopes:
            for direction in directions:
                prepare = partial(problem, scope, direction, shape, torch.bfloat16, "cuda")
                yield Case("grouped_heads", scope, direction, shape, "bf16", *work(scope, direction, shape), prepare)


def checks() -> Iterator[Check]:
    """Odd grids against float64, by whatever runs on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for grid in ((7, 5), (24, 36)):
        shape = {"heads": 3, "height": grid[0], "width": grid[1], "features": 40, "k": 48, "n": 32, "groups": 8}
        tensors = inputs(shape | {"batch": 2}, torch.float32, device)
        wide = {name: [t.double() for t in v] if isinstance(v, list) else v.double() for name, v in tensors.items()}
        got = _run("raw", "both", shape, tensors, grouped_heads, False)
        want = _run("raw", "both", shape, wide, grouped_heads_reference, False)
        yield Check(f"grouped_heads {grid[0]}x{grid[1]} fp32 on {device}", relative_error(got, want), 1e-5)
