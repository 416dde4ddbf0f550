"""Joint attention on the CPU: the twin, the operator, diffusers' own block, and what is refused."""

import math

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels import joint_attention
from kernels.attention import op, reference
from kernels.attention.streams import Norms, Streams
from kernels.errors import KernelError, KernelUnavailable
from ladd_dist.models.sd3.attention import JointAttentionProcessor

NORMS = ("norm_q", "norm_k", "text_norm_q", "text_norm_k")
BLOCKS = {
    "SD3.5": {"qk_norm": "rms_norm"},
    "SD3, no norms": {},
    "last": {"qk_norm": "rms_norm", "context_pre_only": True},
    "dual": {"qk_norm": "rms_norm", "use_dual_attention": True},
}


def streams(dtype=torch.float64, image=11, text=5, grad=True, batch=2):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, n, 2, 32) for n in (image, image, image, text, text, text)]
    return Streams(*(torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes))


def norms(dtype=torch.float64, grad=True):
    g = torch.Generator().manual_seed(1)
    return {
        n: (1 + 0.3 * torch.randn(32, generator=g, dtype=torch.float64)).to(dtype).requires_grad_(grad) for n in NORMS
    }


class WideRms(nn.Module):
    """RMSNorm in the input's own precision: diffusers' takes its mean square in fp32, also of float64."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def block_results(settings, fused, wide):
    torch.manual_seed(0)
    block = JointTransformerBlock(64, 2, 32, **settings).double()
    for name in ("attn", "attn2"):
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            attention = getattr(block, name)
            if getattr(attention, norm, None) is not None:
                nn.init.normal_(getattr(attention, norm).weight, 1, 0.3)
                if wide:
                    setattr(attention, norm, WideRms(getattr(attention, norm)))
        if fused and getattr(block, name) is not None:
            getattr(block, name).set_processor(JointAttentionProcessor("reference"))
    image, text, temb = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 9, 64), (2, 5, 64), (2, 64))
    )
    outs = [x for x in block(image, text, temb) if x is not None]
    inputs = [image, text, temb, *block.parameters()]
    gradients = torch.autograd.grad(sum(x.square().sum() for x in outs), inputs, allow_unused=True)
    return [x.detach() for x in outs], gradients


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-13), (False, 1e-6)], ids=["float64", "diffusers' norm"])
def test_diffusers_own_block(settings, wide, tolerance):
    for got, expected in zip(*(block_results(settings, fused, wide) for fused in (True, False)), strict=True):
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("text", [5, 0])
@pytest.mark.parametrize("backward", ["own", "flash"])
@pytest.mark.parametrize("normed", [True, False])
def test_gradients_are_those_of_plain_autograd(text, backward, normed):
    weights = norms() if normed else dict.fromkeys(NORMS)
    x = streams(text=text)
    leaves = [*x, *(w for w in weights.values() if w is not None)]
    expected = reference.forward(x, Norms(*weights.values()), 1e-6)[:2]
    got = joint_attention(*x, **weights, implementation="reference", backward=backward)
    torch.testing.assert_close(got, expected)
    upstream = [torch.randn_like(y) for y in expected]
    for one, other in zip(
        torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@given(image=st.integers(1, 20), text=st.integers(0, 9))
@settings(max_examples=20)
def test_the_saved_sum_is_the_softmaxs(image, text):
    x, weights = streams(image=image, text=text, grad=False), norms(grad=False)
    _, _, lse = reference.forward(x, Norms(*weights.values()), 1e-6)
    q = torch.cat(
        [
            reference.rms_norm(x.q, weights["norm_q"], 1e-6),
            reference.rms_norm(x.text_q, weights["text_norm_q"], 1e-6),
        ],
        1,
    )
    k = torch.cat(
        [
            reference.rms_norm(x.k, weights["norm_k"], 1e-6),
            reference.rms_norm(x.text_k, weights["text_norm_k"], 1e-6),
        ],
        1,
    )
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(32)
    torch.testing.assert_close(lse, torch.log2(logits.exp().sum(-1)))


def test_the_operators_pass_torchs_own_checks():
    weights = norms(torch.float32).values()
    x = streams(torch.float32, grad=True)
    torch.library.opcheck(op._forward, (*x, *weights, 1e-6, "reference", "own"))
    for given_norms in (list(weights), [None] * 4):
        saved = op._forward(*x, *given_norms, 1e-6, "reference", "own")
        inputs = [t if t is None else t.detach() for t in (*saved[:2], *x, *given_norms, *saved)]
        torch.library.opcheck(op._backward, (*inputs, 1e-6, "reference", "own", True))


def loss(x, weights):
    out, text = joint_attention(*x, **weights, implementation="reference")
    return out.square().sum() + text.square().sum()


def test_activation_checkpointing_and_compilation_change_nothing():
    x, weights = streams(), norms()
    leaves = [*x, *weights.values()]
    plain = torch.autograd.grad(loss(x, weights), leaves)
    again = torch.autograd.grad(checkpoint(loss, x, weights, use_reentrant=False), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(x, weights), leaves)
    for other in (again, compiled):
        torch.testing.assert_close(other, plain)


def test_what_is_saved_is_what_flash_attention_saves():
    x, weights = streams(torch.bfloat16), norms(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out, text_out = joint_attention(*x, **weights, implementation="reference")
    own = {id(t) for t in (*x, *weights.values(), out, text_out)}
    (extra,) = [t for t in saved if id(t) not in own]
    assert extra.shape == (2, 2, 16)
    assert extra.dtype == torch.float32


def test_a_second_derivative_is_refused():
    x = streams()
    out, _ = joint_attention(*x, implementation="reference")
    (gradient,) = torch.autograd.grad(out.square().sum(), x.q, create_graph=True)
    with pytest.raises(RuntimeError, match="joint_attention has no second derivative"):
        torch.autograd.grad(gradient.square().sum(), x.q)


def test_frozen_norms_get_no_gradient():
    x, weights = streams(), norms(grad=False)
    loss(x, weights).backward()
    assert all(w.grad is None for w in weights.values())
    assert all(t.grad is not None for t in x)


def changed(x, **changes):
    return x._replace(**{name: change(getattr(x, name)) for name, change in changes.items()})


REFUSED = {
    "k has shape": {"k": lambda t: t[:, 1:].contiguous()},
    "text_q has shape .* batch, heads and head_dim": dict.fromkeys(
        ("text_q", "text_k", "text_v"), lambda t: t[:, :, :1].contiguous()
    ),
    "v has 3 dimensions": {"v": lambda t: t.flatten(2)},
    "k is torch.float32 and q torch.float64": {"k": lambda t: t.float()},
    "text_v is on meta": {"text_v": lambda t: t.to("meta")},
    "q is not contiguous": {"q": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)},
    "head_dim is 16: only 32, 64, 128": dict.fromkeys(Streams._fields, lambda t: t[..., :16].contiguous()),
    "q has no tokens": dict.fromkeys(("q", "k", "v"), lambda t: t[:, :0].contiguous()),
}


@pytest.mark.parametrize(("words", "changes"), REFUSED.items(), ids=REFUSED)
def test_bad_streams_are_refused(words, changes):
    with pytest.raises(KernelError, match=words):
        joint_attention(*changed(streams(), **changes))


def test_bad_norms_and_halves_of_a_text_are_refused():
    x, weights = streams(), norms()
    with pytest.raises(KernelError, match="norm for q or k alone"):
        joint_attention(*x, norm_q=weights["norm_q"])
    with pytest.raises(KernelError, match=r"norm of q has weights \(16,\): pass \(32,\)"):
        joint_attention(*x, norm_q=weights["norm_q"][:16], norm_k=weights["norm_k"])
    with pytest.raises(KernelError, match="pass all three, or none"):
        joint_attention(*x[:5])
    with pytest.raises(KernelUnavailable, match="asks for triton"):
        joint_attention(*x, implementation="triton")


def test_no_text_gives_no_text():
    x = streams(text=0)
    out, text_out = joint_attention(*x[:3])
    assert text_out is None
    torch.testing.assert_close(out, joint_attention(*x)[0])
    assert joint_attention(*x)[1].shape == (2, 0, 2, 32)
