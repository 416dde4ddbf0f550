"""The compiled joint attention kernels against float64, on the GPU at hand."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels import SDPA_BACKENDS, joint_attention, sdpa_by, sdpa_obstacle
from kernels.attention import reference
from kernels.attention.streams import Norms, Streams

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [(1, 1, 1), (2, 130, 77), (1, 1000, 0), (1, 4096, 154)]


def problem(dtype, head_dim, batch, image, text, weight=1.0):
    torch.manual_seed(0)
    lengths = (image,) * 3 + (text,) * 3
    x = Streams(*(torch.randn(batch, n, 3, head_dim, device="cuda", dtype=dtype).requires_grad_() for n in lengths))
    norms = Norms(*(weight * (1 + 0.3 * torch.randn(4, head_dim, device="cuda"))).requires_grad_().unbind())
    return x, norms, [torch.randn_like(x.q), torch.randn_like(x.text_q)]


def ours(x, norms, upstream, backward="own"):
    q, k, text_q, text_k = norms
    outs = joint_attention(
        *x, norm_q=q, norm_k=k, text_norm_q=text_q, text_norm_k=text_k, implementation="triton",
        backward=backward,
    )  # fmt: skip
    return [*outs, *torch.autograd.grad(outs, [*x, *norms], upstream)]


def expected(x, norms, upstream):
    wide = Streams(*(t.detach().double().requires_grad_() for t in x))
    weights = Norms(*(w.detach().double().requires_grad_() for w in norms))
    outs = reference.forward(wide, weights, 1e-6)[:2]
    return [*outs, *torch.autograd.grad(outs, [*wide, *weights], [u.double() for u in upstream])]


def check(got, wanted, tolerance):
    for one, other in zip(got, wanted, strict=True):
        if other.norm() > 0:
            assert float((one.double() - other).norm() / other.norm()) < tolerance
        else:
            assert float(one.abs().sum()) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients(dtype, head_dim, shape):
    inputs = problem(dtype, head_dim, *shape)
    check(ours(*inputs), expected(*inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("text", [0, 77])
def test_norm_weights_in_bf16_and_a_text_stream_without(text):
    x, norms, upstream = problem(torch.bfloat16, 64, 2, 130, text)
    q, k = (weight.detach().bfloat16().requires_grad_() for weight in norms[:2])

    def solve(implementation, dtype):
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (*x, q, k)]
        outs = joint_attention(*leaves[:6], norm_q=leaves[6], norm_k=leaves[7], implementation=implementation)
        return [*outs, *torch.autograd.grad(outs, leaves, [u.to(dtype) for u in upstream])]

    check(solve("triton", torch.bfloat16), solve("reference", torch.float64), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("weight", [0.3, 3.0], ids=["bounded", "online"])
def test_both_softmaxes(weight):
    inputs = problem(torch.bfloat16, 64, 1, 500, 77, weight)
    check(ours(*inputs)[:2], expected(*inputs)[:2], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", [77, 0])
@pytest.mark.parametrize("library", ["flash", "cudnn"])
def test_a_librarys_backward(library, text, dtype):
    inputs = problem(dtype, 64, 2, 300, text)
    check(ours(*inputs, backward=library), expected(*inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", SDPA_BACKENDS)
def test_pytorchs_own_attention_runs_exactly_where_it_says_so(backend, dtype, head_dim):
    q, k, v = torch.randn(3, 1, 2, 300, head_dim, device="cuda", dtype=dtype).requires_grad_().unbind()
    refused = sdpa_obstacle(backend, q.device, dtype, head_dim)
    with pytest.raises(RuntimeError) if refused else nullcontext(), sdpa_by(backend):
        scaled_dot_product_attention(q, k, v).sum().backward()


def test_equal_bits_every_time():
    inputs = problem(torch.bfloat16, 64, 1, 1000, 154)
    first, second = ours(*inputs), ours(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_buffer_grows_with_the_square_of_the_tokens():
    """Peak beyond what is kept: a small multiple of the inputs at 8,192 tokens, where T x T would be 100 times."""
    inputs = problem(torch.bfloat16, 64, 1, 8192, 154)
    size = sum(t.numel() * t.element_size() for t in inputs[0])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours(*inputs)
    assert torch.cuda.max_memory_allocated() - before < 5 * size
