"""Problems of joint attention: random inputs, the kernel's answer and the reference's in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import joint_attention

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative, per output and gradient."""
NAMES = ("q", "k", "v", "text_q", "text_k", "text_v", "norm_q", "norm_k", "text_norm_q", "text_norm_k")


@dataclass
class Problem:
    """Inputs by name (None where absent) and the two outputs' gradients, all rounded to ``dtype``."""

    dtype: torch.dtype
    inputs: dict[str, Tensor | None]
    upstream: tuple[Tensor, Tensor]
    backward: str = "own"

    def solve(self, dtype: torch.dtype, implementation: str) -> dict[str, Tensor]:
        """Outputs and gradients of every input."""
        leaves = {}
        for name, x in self.inputs.items():
            wide = dtype if dtype == torch.float64 or "norm" not in name else torch.float32
            leaves[name] = None if x is None else x.to(wide).requires_grad_()
        backward = self.backward if implementation == "triton" else "own"
        outs = joint_attention(**leaves, implementation=implementation, backward=backward)
        given = [x for x in leaves.values() if x is not None]
        gradients = torch.autograd.grad(outs, given, [g.to(dtype) for g in self.upstream])
        named = dict(zip([n for n, x in leaves.items() if x is not None], gradients, strict=True))
        return {"out": outs[0].detach(), "text_out": outs[1].detach()} | {f"d_{n}": g for n, g in named.items()}

    def errors(self) -> dict[str, float]:
        """Relative error of the kernel's every output and gradient against float64; absolute where that is 0."""
        got, expected = self.solve(self.dtype, "triton"), self.solve(torch.float64, "reference")
        return {name: _error(got[name].double(), expected[name]) for name in expected if expected[name].numel()}

    def check(self) -> None:
        for name, error in self.errors().items():
            assert error < TOLERANCE[self.dtype], (name, error)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / (expected.norm() or 1.0))


def problem(
    dtype: torch.dtype = torch.float32, *, batch: int = 1, image: int = 70, text: int = 20, heads: int = 1,
    head_dim: int = 32, image_norm: bool = True, text_norm: bool = True, weight: float = 1.0, size: float = 1.0,
    seed: int = 0,
) -> Problem:  # fmt: skip
    """Random problem; ``weight`` scales the norm weights and ``size`` queries and keys."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inputs: dict[str, Tensor | None] = {}
    for name in NAMES[:6]:
        length = text if name.startswith("text") else image
        scale = 1.0 if name.endswith("v") else size
        inputs[name] = (draw(batch, length, heads, head_dim) * scale).to(dtype)
    for name in NAMES[6:]:
        normed = text_norm if name.startswith("text") else image_norm
        inputs[name] = (weight * (1 + 0.3 * draw(head_dim))).float() if normed else None
    upstream = draw(batch, image, heads, head_dim).to(dtype), draw(batch, text, heads, head_dim).to(dtype)
    return Problem(dtype, inputs, upstream)
