"""Problems of joint attention: random inputs, the kernel's answer and the reference's in float64."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import joint_attention
from kernels.attention.reference import joint, rms_norm

UNIT_ROUNDOFF = 2.0**-24
"""Of fp32, in which the kernels add."""
STORED = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative, per output and gradient: what queries, keys, probabilities and outputs lose where they are stored."""
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
            kept = "norm" in name and dtype != torch.float64
            leaves[name] = None if x is None else x.to(x.dtype if kept else dtype).requires_grad_()
        backward = self.backward if implementation == "triton" else "own"
        outs = joint_attention(**leaves, implementation=implementation, backward=backward)
        given = [x for x in leaves.values() if x is not None]
        gradients = torch.autograd.grad(outs, given, [g.to(dtype) for g in self.upstream])
        named = dict(zip([n for n, x in leaves.items() if x is not None], gradients, strict=True))
        return {"out": outs[0].detach(), "text_out": outs[1].detach()} | {f"d_{n}": g for n, g in named.items()}

    def largest_logit(self) -> float:
        """The largest ``sum |q_d| |k_d|`` of a query and a key behind their norms, times the softmax scale."""
        q, k = (
            joint(*(rms_norm(x.double(), weight, 1e-6) for x, weight in streams)).abs()
            for streams in (self._streams("q"), self._streams("k"))
        )
        return float((q @ k.mT).max()) / math.sqrt(q.shape[-1])

    def _streams(self, name: str) -> list[tuple[Tensor, Tensor | None]]:
        return [(self.inputs[f"{stream}{name}"], self.inputs[f"{stream}norm_{name}"]) for stream in ("", "text_")]

    def tolerance(self) -> float:
        """Relative bound of each output's and gradient's error, in whatever order a processor adds.

        A logit in fp32 is off by about as many unit roundoffs as it is large, by its products and its sum, which may
        cancel: hence their absolute values. So is the saved log-sum-exp. An exponential turns an absolute error into
        a relative one, and the rest are weighted means of these probabilities, which keep it, plus a few roundings
        of their own. A gradient takes the difference of two such means. Twice from logit and log-sum-exp, twice for
        that difference, twice for the roundings of norms and products: eight (measured: up to 2.2). fp16 and bf16
        lose more where values are stored.
        """
        return STORED.get(self.dtype, 8 * UNIT_ROUNDOFF * (1 + self.largest_logit()))

    def errors(self) -> dict[str, float]:
        """Relative error of the kernel's every output and gradient against float64; absolute where that is 0."""
        got, expected = self.solve(self.dtype, "triton"), self.solve(torch.float64, "reference")
        return {name: _error(got[name].double(), expected[name]) for name in expected if expected[name].numel()}

    def check(self) -> None:
        tolerance = self.tolerance()
        for name, error in self.errors().items():
            assert error < tolerance, (name, error, tolerance)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / (expected.norm() or 1.0))


def problem(
    dtype: torch.dtype = torch.float32, *, batch: int = 1, image: int = 70, text: int = 20, heads: int = 1,
    head_dim: int = 32, image_norm: bool = True, text_norm: bool = True, weight: float = 1.0, size: float = 1.0,
    image_weights: torch.dtype = torch.float32, text_weights: torch.dtype = torch.float32, seed: int = 0,
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
        normed, kind = (text_norm, text_weights) if name.startswith("text") else (image_norm, image_weights)
        inputs[name] = (weight * (1 + 0.3 * draw(head_dim))).to(kind) if normed else None
    upstream = draw(batch, image, heads, head_dim).to(dtype), draw(batch, text, heads, head_dim).to(dtype)
    return Problem(dtype, inputs, upstream)
