"""What joint attention is timed against: diffusers' way, every SDPA backend, FlexAttention and flash-attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels.attention.backends import sdpa_by
from kernels.attention.streams import Norms, Streams
from kernels.bench.case import Run
from kernels.bench.compiled import compile_whole
from kernels.bench.flash_libraries import FLASH_LIBRARIES, Attend, flash_libraries

Outputs = tuple[Tensor, ...]
_SDPA = {"SDPA flash": "flash", "SDPA cuDNN": "cudnn", "SDPA efficient": "efficient"}
"""Providers -> names of `kernels.attention.backends`."""


@dataclass(frozen=True)
class Provider:
    """A forward pass, what to differentiate it by, and how its results become streams ``(B, N, H, D)``."""

    forward: Callable[[], Outputs]
    leaves: list[Tensor]
    upstream: Outputs
    unpack: Callable[[Outputs], Outputs] = lambda results: results

    def bind(self, direction: str) -> Run:
        """The pass to time; a backward pass alone goes through one kept graph."""
        if direction == "forward":
            return torch.no_grad()(lambda: self.unpack(self.forward()))
        if direction == "both":
            return lambda: self.unpack(torch.autograd.grad(self.forward(), self.leaves, self.upstream))
        outs = self.forward()
        return lambda: self.unpack(torch.autograd.grad(outs, self.leaves, self.upstream, retain_graph=True))


def attends() -> tuple[dict[str, Attend], dict[str, str]]:
    """Every way to attend that runs on this GPU, and why others do not."""
    libraries, absent = flash_libraries()
    found: dict[str, Attend] = {name: partial(_sdpa, backend) for name, backend in _SDPA.items()}
    found |= {"FlexAttention": _flex()} | libraries
    for name in list(found):
        if reason := _fails(found[name]):
            absent[name] = reason
            del found[name]
    return found, absent


def _sdpa(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_by(backend):
        return functional.scaled_dot_product_attention(q, k, v)


def _flex() -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _fails(attend: Attend) -> str:
    """Why a small forward and backward pass does not run, or an empty string."""
    q, k, v = (torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    try:
        attend(q, k, v).sum().backward()
    except Exception as error:  # packages raise what they like on GPUs that they do not know
        return " ".join(str(error).split())[:120]
    return ""


def diffusers_way(x: Streams, norms: Norms, eps: float, attend: Attend) -> Outputs:
    """Norms, two concatenations per operand and a call, as in diffusers' SD3 processor."""
    return split(attend(*joined(x, norms, eps)), x.q.shape[1])


def joined(x: Streams, norms: Norms, eps: float) -> Outputs:
    """Normalised queries, keys and values of both streams, ``(B, H, T, D)``."""
    image = _norm(x.q, norms.q, eps), _norm(x.k, norms.k, eps), x.v
    text = _norm(x.text_q, norms.text_q, eps), _norm(x.text_k, norms.text_k, eps), x.text_v
    return tuple(torch.cat([a.transpose(1, 2), b.transpose(1, 2)], 2) for a, b in zip(image, text, strict=True))


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """diffusers' RMSNorm: the mean square in fp32."""
    if weight is None:
        return x
    variance = x.float().square().mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype) * weight


def split(out: Tensor, image: int) -> Outputs:
    """Both streams' rows of a joint ``(B, H, T, D)``."""
    joint = out.transpose(1, 2).contiguous()
    return joint[:, :image], joint[:, image:]


def whole_providers(
    x: Streams, norms: Norms, upstream: Outputs, eps: float
) -> tuple[dict[str, Provider], dict[str, str]]:
    """From the projections' outputs on: eager and compiled, around PyTorch's choice and around each way to attend.

    torch.compile cannot see into the flash-attention packages: they are called between two compiled parts.
    """
    found, absent = attends()
    leaves = [t for t in (*x, *norms) if t is not None]
    sdpa, compiled = functional.scaled_dot_product_attention, compile_whole(diffusers_way)
    forwards = {
        "diffusers eager": partial(diffusers_way, x, norms, eps, sdpa),
        "diffusers compiled": partial(compiled, x, norms, eps, sdpa),
    }
    forwards |= {f"eager around {name}": partial(diffusers_way, x, norms, eps, found[name]) for name in found}
    prepare, finish = compile_whole(joined), compile_whole(split)

    def between(attend: Attend) -> Outputs:
        return finish(attend(*prepare(x, norms, eps)), x.q.shape[1])

    for name, attend in found.items():
        opaque = name in FLASH_LIBRARIES
        forwards[f"compiled around {name}"] = (
            partial(between, attend) if opaque else partial(compiled, x, norms, eps, attend)
        )
    return {name: Provider(forward, leaves, upstream) for name, forward in forwards.items()}, absent


def packed_providers(x: Streams, upstream: Outputs) -> tuple[dict[str, Provider], dict[str, str]]:
    """The libraries' own ground: one packed, contiguous sequence."""
    found, absent = attends()
    image = x.q.shape[1]
    packed = [torch.cat([a, b], 1).transpose(1, 2).contiguous().detach().requires_grad_() for a, b in _pairs(x)]
    d_out = torch.cat(upstream, 1).transpose(1, 2).contiguous()

    def unpack(results: Outputs) -> Outputs:
        image_parts = [t.transpose(1, 2)[:, :image] for t in results]
        return *image_parts, *(t.transpose(1, 2)[:, image:] for t in results)

    def forward(attend: Attend) -> Outputs:
        return (attend(*packed),)

    return {
        name: Provider(partial(forward, attend), packed, (d_out,), unpack) for name, attend in found.items()
    }, absent


def _pairs(x: Streams) -> list[tuple[Tensor, Tensor]]:
    return [(x.q, x.text_q), (x.k, x.text_k), (x.v, x.text_v)]
