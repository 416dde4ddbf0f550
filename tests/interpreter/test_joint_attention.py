"""The joint attention kernels on the CPU, against float64: every output and every gradient."""

import math

import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import problem

from kernels import joint_attention
from kernels.attention import forward, launch
from kernels.attention.forward import BOUND_LIMIT
from kernels.attention.streams import Norms, Streams

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = DTYPES[1:]
SHAPES = {
    "ragged": {"image": 130, "text": 77, "heads": 2},
    "one token": {"image": 1, "text": 1},
    "no text": {"image": 65, "text": 0, "batch": 2},
    "whole tiles": {"image": 128, "text": 64},
    "head_dim 64": {"head_dim": 64, "image": 90, "text": 33},
    "head_dim 128": {"head_dim": 128, "image": 66, "text": 3},
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients(shape, dtype):
    problem(dtype, **shape).check()


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_outputs_and_gradients_in_fp32(head_dim):
    problem(head_dim=head_dim, image=37, text=18, batch=2).check()


@pytest.mark.parametrize("norms", [(False, False), (True, False), (False, True)])
def test_streams_without_norm(norms):
    problem(image_norm=norms[0], text_norm=norms[1]).check()


@pytest.mark.parametrize("text_norm", [True, False], ids=["another dtype", "no norm"])
@pytest.mark.parametrize("kind", HALVES, ids=str)
def test_norm_weights_of_any_dtype(kind, text_norm):
    """A frozen network's are bf16, and SD3.5 Medium's second attention has no text, so no norm of it."""
    problem(torch.bfloat16, image_weights=kind, text_norm=text_norm, text=20 if text_norm else 0).check()


@given(
    dtype=st.sampled_from(HALVES), image=st.integers(1, 140), text=st.integers(0, 70),
    heads=st.integers(1, 2), batch=st.integers(1, 2), norms=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=6, deadline=None, derandomize=True)
def test_any_shape(dtype, image, text, heads, batch, norms, seed):
    shape = {"image": image, "text": text, "heads": heads, "batch": batch}
    problem(dtype, **shape, image_norm=norms[0], text_norm=norms[1], seed=seed).check()


@pytest.mark.parametrize("norms", [(True, True), (True, False)])
@pytest.mark.parametrize("shape", ["ragged", "one token", "no text"])
def test_the_kernels_around_a_librarys_backward(shape, norms):
    p = problem(**SHAPES[shape], image_norm=norms[0], text_norm=norms[1])
    p.backward = "flash"
    p.check()


@pytest.mark.parametrize("size", [1e-3, 1e3], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalised_inputs_of_any_size(size, dtype):
    """fp16's smallest is 6e-8 and its largest 65504: norms take both away, and gradients grow by 1 / size."""
    problem(dtype, size=size, heads=2).check()


def test_logits_far_out():
    """Without norms the logits reach several hundred: the online softmax must hold."""
    problem(size=10.0, image_norm=False, text_norm=False).check()


def test_logits_all_far_below_zero():
    """A key past the end has the logit 0, and so an infinite probability where the sum is of exp2(-600)."""
    p, g = problem(image=37, text=9), torch.Generator().manual_seed(0)
    for name, direction in {"q": -1.0, "k": 1.0, "text_q": -1.0, "text_k": 1.0}.items():
        p.inputs[name] = direction + 0.05 * torch.randn(p.inputs[name].shape, generator=g)
    p.inputs |= {name: weights_at(600.0) for name in ("norm_q", "norm_k", "text_norm_q", "text_norm_k")}
    p.check()


def weights_at(bound: float, head_dim: int = 32) -> torch.Tensor:
    """Constant norm weights for which the logit bound is ``bound`` log2 units."""
    return torch.full((head_dim,), (bound / 1.4426950408889634 / head_dim**0.5) ** 0.5)


def launches(bound: float, monkeypatch, dtype=torch.float32, text_norm=True) -> dict[bool, bool]:
    """BOUNDED of every forward launch -> whether it wrote its output."""
    p = problem(dtype, image=40, text=9)
    norm = weights_at(bound)
    norms = Norms(norm, norm, *((norm, norm) if text_norm else (None, None)))
    streams = Streams(*(p.inputs[n] for n in ("q", "k", "v", "text_q", "text_k", "text_v")))
    wrote = {}

    def spy(launcher, k, bounded, guarded, outs, lse):
        for out in outs:
            out.fill_(float("nan"))
        original(launcher, k, bounded, guarded, outs, lse)
        wrote[bounded] = not any(out.isnan().any() for out in outs)

    original = launch._launch_forward
    monkeypatch.setattr(launch, "_launch_forward", spy)
    launch.forward(streams, norms, 1e-6)
    return wrote


@pytest.mark.parametrize(("share", "bounded"), [(0.999, True), (1.001, False)])
def test_the_switch_at_the_bound(share, bounded, monkeypatch):
    assert launches(share * BOUND_LIMIT.value, monkeypatch) == {bounded: True, not bounded: False}


def test_no_bound_where_there_is_none(monkeypatch):
    assert launches(1.0, monkeypatch, dtype=torch.float16) == {False: True}
    assert launches(1.0, monkeypatch, text_norm=False) == {False: True}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_softmaxes_agree_where_all_logits_are_at_the_bound(sign, dtype, monkeypatch):
    """Every query lies along every key: exp2 of plus or minus the limit, and sums of it, stay in range."""
    p, norm = problem(dtype, image=70, text=20), weights_at(0.999 * BOUND_LIMIT.value)
    p.inputs |= dict.fromkeys(("norm_q", "norm_k", "text_norm_q", "text_norm_k"), norm)
    g = torch.Generator().manual_seed(0)
    directions = {"q": sign, "k": 1.0, "text_q": sign, "text_k": 1.0}
    for name, direction in directions.items():
        p.inputs[name] = (direction + 0.05 * torch.randn(p.inputs[name].shape, generator=g)).to(dtype)
    streams = Streams(*(p.inputs[n] for n in ("q", "k", "v", "text_q", "text_k", "text_v")))
    bounded = launch.forward(streams, Norms(*[norm] * 4), 1e-6)
    assert float(((bounded[2] - math.log2(70 + 20)) * sign).min()) > 0.97 * BOUND_LIMIT.value
    monkeypatch.setattr(forward, "BOUND_LIMIT", tl.constexpr(0.0))
    online = launch.forward(streams, Norms(*[norm] * 4), 1e-6)
    for one, other in zip(bounded, online, strict=True):
        assert float((one.double() - other.double()).norm() / other.double().norm()) < p.tolerance()


def test_equal_bits_every_time():
    p = problem(image=130, heads=2)
    first, second = (p.solve(torch.float32, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_element_is_written(monkeypatch):
    """Buffers come poisoned: whatever a kernel leaves out shows as NaN."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(float("nan")))
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan")))
    problem(image=70, text=33, heads=2).check()


def test_frozen_weights_get_no_gradient_and_cost_no_buffer(monkeypatch):
    p = problem()
    leaves = {n: x.clone().requires_grad_("norm" not in n) for n, x in p.inputs.items()}
    monkeypatch.setattr(launch, "reduce_shares", None)
    outs = joint_attention(**leaves, implementation="triton")
    torch.autograd.backward(outs, p.upstream)
    assert all((x.grad is None) == ("norm" in n) for n, x in leaves.items())
