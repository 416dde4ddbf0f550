"""Joint attention of an SD3.5 Large block: 38 heads of 64, from raw q, k, v of image and text to both outputs.

``end_to_end`` starts at the projections' outputs, norms and concatenation included; ``raw`` starts at packed,
normalised tensors for the libraries and leaves norms out for ours.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kernels.attention import reference
from kernels.attention.op import joint_attention
from kernels.attention.streams import BACKWARDS, Norms, Streams
from kernels.bench.case import Case, Check, Problem, relative_error
from kernels.bench.compiled import graphed
from kernels.bench.joint_attention_providers import Provider, packed_providers, whole_providers
from kernels.dispatch import resolve

HEADS, HEAD_DIM, EPS = 38, 64, 1e-6
BATCHES = (1, 2, 4, 8)
TEXTS = (154, 333)
IMAGES = (4096, 3952, 4032)
"""Tokens of 1024x1024, 832x1216 and 768x1344."""
DIRECTIONS: tuple[Literal["forward", "backward", "both"], ...] = ("forward", "backward", "both")
PRODUCTS = {"forward": 2, "backward": 5, "both": 7}
"""Matrix products over the T x T logits that a pass cannot do without."""
_BACKWARDS = {"cpu": ("own", "flash"), "cuda": BACKWARDS}
_CHECKED = {"bf16": (torch.bfloat16, 2e-2), "fp16": (torch.float16, 3e-3), "fp32": (torch.float32, 1e-5)}


def draw(
    batch: int, image: int, text: int, heads: int, dtype: torch.dtype, device: str
) -> tuple[Streams, Norms, tuple[Tensor, Tensor]]:
    """Random streams and norm weights that want gradients, and the outputs' gradients."""

    def rows(length: int) -> Tensor:
        return torch.randn(batch, length, heads, HEAD_DIM, dtype=dtype, device=device)

    streams = Streams(*(rows(length).requires_grad_() for length in (image,) * 3 + (text,) * 3))
    weights = (1 + 0.3 * torch.randn(4, HEAD_DIM, device=device)).to(dtype)
    return streams, Norms(*(w.clone().requires_grad_() for w in weights)), (rows(image), rows(text))


def checks() -> Iterator[Check]:
    """Our operator as this machine runs it, against float64: outputs and all ten gradients."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = resolve(torch.device(device)).implementation
    for name, (dtype, tolerance) in _CHECKED.items():
        torch.manual_seed(0)
        streams, norms, upstream = draw(2, 200, 77, 2, dtype, device)
        expected = _in_float64(streams, norms, upstream)
        for backward in _BACKWARDS[device] if dtype != torch.float32 else ("own",):
            got = _both(partial(_ours, streams, norms, backward), streams, norms, upstream)
            kind = chosen if backward == "own" else f"{chosen}, backward by {backward}"
            yield Check(f"joint_attention {name} on {device}, {kind}", relative_error(got, expected), tolerance)


def _ours(x: Streams, norms: Norms, backward: str = "own") -> tuple[Tensor, ...]:
    q, k, text_q, text_k = norms
    out, text_out = joint_attention(
        *x, norm_q=q, norm_k=k, text_norm_q=text_q, text_norm_k=text_k, eps=EPS, backward=backward
    )
    return out, text_out  # type: ignore[return-value]


def _both(
    forward: Callable[[], tuple[Tensor, ...]], x: Streams, norms: Norms, upstream: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    outs = forward()
    leaves = [t for t in (*x, *norms) if t is not None]
    return *outs, *torch.autograd.grad(outs, leaves, upstream)


def _in_float64(x: Streams, norms: Norms, upstream: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    wide = Streams(*(t.detach().double().requires_grad_() for t in x))
    weights = Norms(*(None if w is None else w.detach().double().requires_grad_() for w in norms))
    forward = partial(reference.forward, wide, weights, EPS)
    return _both(lambda: forward()[:2], wide, weights, tuple(u.double() for u in upstream))


def cases() -> Iterator[Case]:
    """Every batch, text and image length, in every direction, whole and raw."""
    for image in IMAGES:
        for text in TEXTS:
            for batch in BATCHES:
                for direction in DIRECTIONS:
                    yield _case("end_to_end", batch, image, text, direction)
                    yield _case("raw", batch, image, text, direction)


def _case(
    scope: Literal["raw", "end_to_end"], batch: int, image: int, text: int,
    direction: Literal["forward", "backward", "both"],
) -> Case:  # fmt: skip
    tokens = image + text
    tensor = batch * tokens * HEADS * HEAD_DIM * 2
    moved = {"forward": 4, "backward": 8, "both": 12}[direction]
    return Case(
        op="joint_attention",
        scope=scope,
        direction=direction,
        shape={"batch": batch, "image": image, "text": text, "heads": HEADS, "head_dim": HEAD_DIM},
        dtype="bf16",
        flops=PRODUCTS[direction] * 2 * batch * HEADS * tokens**2 * HEAD_DIM,
        bytes=moved * tensor,
        prepare=partial(_prepare, scope, batch, image, text, direction),
    )


def _prepare(scope: str, batch: int, image: int, text: int, direction: str) -> Problem:
    torch.manual_seed(0)
    x, norms, upstream = draw(batch, image, text, HEADS, torch.bfloat16, "cuda")
    if scope == "raw":
        x, norms = _normalised(x, norms), Norms(None, None, None, None)
        theirs, absent = packed_providers(x, upstream)
    else:
        theirs, absent = whole_providers(x, norms, upstream, EPS)
    leaves = [t for t in (*x, *norms) if t is not None]
    ours = {
        "triton": Provider(partial(_ours, x, norms), leaves, upstream),
        "triton + flash backward": Provider(partial(_ours, x, norms, "flash"), leaves, upstream),
        "triton + cuDNN backward": Provider(partial(_ours, x, norms, "cudnn"), leaves, upstream),
    }
    runs = {name: provider.bind(direction) for name, provider in (ours | theirs).items()}
    if (scope, direction) == ("end_to_end", "both"):
        # The host's launches take longer than ours and the best other's kernels at batch 1; a graph has no host.
        runs |= {f"{name}, CUDA graph": graphed(runs[name]) for name in ("triton", "diffusers compiled")}
    return Problem(runs, absent, _expected(direction, x, norms, upstream), _sample)


def _normalised(x: Streams, norms: Norms) -> Streams:
    """The streams behind their norms, for the op alone."""
    pairs = zip(x, (norms.q, norms.k, None, norms.text_q, norms.text_k, None), strict=True)
    return Streams(*(reference.rms_norm(t, w, EPS).to(t.dtype).detach().requires_grad_() for t, w in pairs))


def _sample(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two heads of one sample of all outputs or streams' gradients: what float64 has room and time for."""
    return tuple(t[:1, :, :2] for t in results if t.ndim == 4)


def _expected(direction: str, x: Streams, norms: Norms, upstream: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """`_sample` in float64: heads and samples meet in the norm weights' gradients alone, which `checks` holds."""
    few = Streams(*_sample(x))
    one = Streams(*(t.detach().double().requires_grad_() for t in few))
    weights = Norms(*(None if w is None else w.detach().double() for w in norms))
    outs = reference.forward(one, weights, EPS)[:2]
    if direction == "forward":
        return tuple(o.detach() for o in outs)
    return torch.autograd.grad(outs, list(one), [u.double() for u in _sample(upstream)])
