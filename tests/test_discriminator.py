import json
import math
from functools import partial
from itertools import product

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from kernels import measured
from ladd_dist.config import DiscriminatorConfig
from ladd_dist.errors import LaddError
from ladd_dist.methods.ladd.heads import DiscriminatorHeads, choose_heads
from ladd_dist.methods.ladd.losses import r1_penalty

CONFIG = DiscriminatorConfig(width=16, out_width=8, groups=4, cond_width=12)


def heads(config=CONFIG, depth=3, width=10, pooled=6):
    torch.manual_seed(0)
    module = DiscriminatorHeads(config, depth, width, pooled)
    with torch.no_grad():  # norms and biases away from their neutral start
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


def features(batch=2, grid=(3, 5), count=3, width=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, grid[0] * grid[1], width, generator=g) for _ in range(count)]


T, POOLED = torch.tensor([0.2, 0.9]), torch.randn(2, 6, generator=torch.Generator().manual_seed(5))


def waves(t):
    return get_timestep_embedding(1000 * t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)


def one_head(module: DiscriminatorHeads, index: int, tokens, grid, t, pooled, student_time=None):
    """A head as the design states it, from plain layers and one sample at a time."""
    k, o = CONFIG.width, CONFIG.out_width
    logits = []
    for row in range(len(tokens)):
        image = tokens[row].T.reshape(-1, *grid)[None]
        x = F.conv2d(image, module.project[index].T[:, :, None, None], module.project_bias[index, 0])
        for conv, norm, n in ((module.conv1, module.norm1, k), (module.conv2, module.norm2, o)):
            part = slice(index * n, (index + 1) * n)
            x = F.conv2d(x, conv.weight[part], conv.bias[part], padding=1)
            x = F.group_norm(x, CONFIG.groups, norm.weight[part], norm.bias[part])
            x = F.leaky_relu(x, 0.2)
        c = module.embed_time(waves(t[row : row + 1])) + module.embed_pooled(pooled[row])
        if student_time is not None:
            c = c + module.embed_student_time(waves(student_time[row : row + 1]))
        c = F.silu(c)
        v = module.embed(c)[0].view(-1, o)[index] / math.sqrt(o)
        logits.append(torch.einsum("khw,k->hw", x[0], module.logit[index] + v) + module.logit_bias[index])
    return torch.stack(logits)


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 7), (4, 4)])
def test_grouped_heads_equal_heads_run_one_by_one(grid):
    module, inputs = heads(), features(grid=grid)
    got = module(inputs, grid, T, POOLED)
    assert got.shape == (3, 2, *grid)
    for index in range(3):
        torch.testing.assert_close(
            got[index], one_head(module, index, inputs[index], grid, T, POOLED), rtol=1e-4, atol=1e-5
        )


def test_gradients_of_grouped_heads_equal_those_one_by_one():
    module, inputs = heads(), [f.requires_grad_() for f in features()]
    parameters = list(module.parameters())
    got = torch.autograd.grad(module(inputs, (3, 5), T, POOLED).square().mean(), [*inputs, *parameters])
    single = torch.stack([one_head(module, i, inputs[i], (3, 5), T, POOLED) for i in range(3)])
    expected = torch.autograd.grad(single.square().mean(), [*inputs, *parameters])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_heads_and_samples_do_not_see_one_another():
    module, inputs = heads(), features()
    before = module(inputs, (3, 5), T, POOLED)
    inputs[1][0] += 1.0
    changed = (module(inputs, (3, 5), T, POOLED) != before).flatten(2).any(2)
    assert changed.tolist() == [[False, False], [True, False], [False, False]]


def test_r1_is_the_squared_gradient_of_each_sample_by_each_heads_features():
    """And its gradient by the weights, against autograd's of one head and sample after the other."""
    module, inputs = heads(), [f.requires_grad_() for f in features(grid=(3, 5))]
    logits, slopes = module(inputs, (3, 5), T, POOLED, 0, "twice")
    penalty = r1_penalty(slopes, logits[0, 0].numel())
    plain, total = module(inputs, (3, 5), T, POOLED), 0
    for head, sample in product(range(3), range(2)):
        mean = plain[head, sample].sum() / 15**0.5
        (gradient,) = torch.autograd.grad(mean, inputs[head], create_graph=True)
        total = total + gradient.square().sum() / 6
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-5)
    close((logits, penalty), (plain, total))
    by_weights = partial(
        torch.autograd.grad, inputs=[*module.parameters()], retain_graph=True, materialize_grads=True
    )
    close(by_weights(penalty), by_weights(total))


def test_r1_of_features_in_bf16_is_summed_in_fp32():
    with torch.autocast("cpu", torch.bfloat16):
        _, slopes = heads()([f.bfloat16() for f in features()], (3, 5), T, POOLED, 0, "twice")
    _, exact = heads()([f.bfloat16().float() for f in features()], (3, 5), T, POOLED, 0, "twice")
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, exact, rtol=0.1, atol=0)


def test_convolutions_see_true_neighbours_not_row_ends(monkeypatch):
    monkeypatch.setattr("kernels.heads.reference._normalised", lambda y, *_: (y, y, y))  # norms see the whole grid
    module, inputs = heads(), features(grid=(6, 6))
    before = module(inputs, (6, 6), T, POOLED)
    inputs[0][:, 2 * 6 + 5] += 1.0  # row 2, last column
    changed = (module(inputs, (6, 6), T, POOLED) != before)[0, 0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[0:5, 3:6] = True  # two 3x3 convolutions reach two positions
    assert torch.equal(changed, expected)


def test_the_verdict_depends_on_noise_level_and_text():
    module, inputs = heads(), features()
    base = module(inputs, (3, 5), T, POOLED)
    assert (module(inputs, (3, 5), T + 0.05, POOLED) - base).abs().amax((2, 3)).min() > 1e-4
    assert (module(inputs, (3, 5), T, POOLED + 0.5) - base).abs().amax((2, 3)).min() > 1e-4


def test_heads_that_are_told_the_students_time_add_its_embedding():
    module, inputs, times = (
        heads(CONFIG.model_copy(update={"student_time": True})),
        features(),
        torch.tensor([1.0, 0.5]),
    )
    told = module(inputs, (3, 5), T, POOLED, student_time=times)
    for index, verdict in enumerate(told):
        expected = one_head(module, index, inputs[index], (3, 5), T, POOLED, times)
        torch.testing.assert_close(verdict, expected, rtol=1e-4, atol=1e-5)
    other = module(inputs, (3, 5), T, POOLED, student_time=times.flip(0))
    assert (told - other).abs().amax((2, 3)).min() > 1e-4
    few = module(inputs[1:], (3, 5), T, POOLED, 1, student_time=times)
    torch.testing.assert_close(few, told[1:])
    with pytest.raises(ValueError, match="are told the student's times"):
        module(inputs, (3, 5), T, POOLED)


def test_only_conditioned_heads_can_be_told():
    with pytest.raises(ValueError, match="set conditioned=true"):
        DiscriminatorConfig(conditioned=False, student_time=True)


def test_unconditioned_heads_see_neither_noise_level_nor_text():
    module, inputs = heads(CONFIG.model_copy(update={"conditioned": False})), features()
    verdict = module(inputs, (3, 5), T, POOLED)
    assert torch.equal(verdict, module(inputs, (3, 5), T.flip(0), -POOLED))
    assert not [name for name, _ in module.named_parameters() if "embed" in name]
    told = heads()
    with torch.no_grad():
        told.embed.weight.zero_()
        told.embed.bias.zero_()
    told.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(verdict, told(inputs, (3, 5), T, POOLED))


def test_heads_on_the_line_judge_a_sequence_whatever_its_grid():
    line, inputs = heads(CONFIG.model_copy(update={"convolve": "line"})), features()
    sequence = heads()(inputs, (1, 15), T, POOLED)
    for grid in ((3, 5), (5, 3), (1, 15)):
        torch.testing.assert_close(line(inputs, grid, T, POOLED), sequence.view(3, 2, *grid))
    assert not torch.allclose(heads()(inputs, (3, 5), T, POOLED).flatten(), sequence.flatten(), atol=0.1)


def test_only_chosen_blocks_carry_heads():
    assert heads(CONFIG.model_copy(update={"blocks": [2, 0, 2]})).taps == (0, 2)
    with pytest.raises(LaddError, match="blocks 0 to 2"):
        heads(CONFIG.model_copy(update={"blocks": [3]}))


def test_heads_of_the_8b_teacher_are_about_57m_parameters():
    with torch.device("meta"):
        module = DiscriminatorHeads(DiscriminatorConfig(), 38, 2432, 2048)
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(57e6, rel=0.05)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fill"):
        heads()(features(), (4, 4), T, POOLED)


def test_a_few_heads_judge_as_they_do_among_all():
    module, inputs = heads(), features()
    together = module(inputs, (3, 5), T, POOLED)
    torch.testing.assert_close(module(inputs[1:], (3, 5), T, POOLED, 1), together[1:], rtol=1e-5, atol=1e-6)


def test_judging_for_the_generator_leaves_the_weights_out():
    module, inputs = heads(), [f.requires_grad_() for f in features()]
    logits = module(inputs, (3, 5), T, POOLED, 0, "inputs")
    assert torch.equal(logits, module(inputs, (3, 5), T, POOLED))
    found = torch.autograd.grad(logits.sum(), [*inputs, *module.parameters()], allow_unused=True)
    assert all(g is not None for g in found[:3])
    assert all(g is None for g in found[3:])


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended GPU")
    return torch.device("cuda", 0)


WIDE = CONFIG.model_copy(update={"out_width": 16})


def choose(setting, config, device):
    return choose_heads(setting, config, 3, device, torch.bfloat16)


def test_kernels_that_cannot_run_are_refused_and_auto_does_without(gpu):
    cpu = torch.device("cpu")
    assert str(choose("auto", WIDE, cpu)) == "reference (there is no Triton for device cpu)"
    assert choose("torch", WIDE, gpu).implementation == choose("auto", CONFIG, gpu).implementation == "reference"
    with pytest.raises(LaddError, match="make discriminator.out_width a multiple of 16"):
        choose("triton", CONFIG, gpu)
    with pytest.raises(LaddError, match="kernels.heads=triton: there is no Triton.*set kernels.heads=auto or torch"):
        choose("triton", WIDE, cpu)
    assert choose("triton", WIDE, gpu).implementation == "triton"


def test_auto_takes_what_was_measured_to_be_faster(gpu, monkeypatch, tmp_path):
    table = tmp_path / "measured.json"
    monkeypatch.setattr(measured.fastest, "__defaults__", (table,))
    table.write_text("[]")
    assert "nothing was measured on Pretended GPU in bf16 at these widths" in str(choose("auto", WIDE, gpu))
    key = {"op": "grouped_heads", "gpu": "Pretended GPU", "dtype": "bf16", "k": WIDE.width, "n": WIDE.out_width}
    few = key | {"heads": 4, "p50_ms": {"triton": 1.0, "grouped": 2.0, "loop": 0.5}}
    many = key | {"heads": 38, "p50_ms": {"triton": 2.0, "grouped": 1.0}}
    table.write_text(json.dumps([many, few]))
    assert str(choose("auto", WIDE, gpu)) == "triton (ms for 4 heads on Pretended GPU: triton 1.000, torch 2.000)"
    assert choose_heads("auto", WIDE, 30, gpu, torch.bfloat16).implementation == "reference"
    assert choose_heads("auto", WIDE, 3, gpu, torch.float32).implementation == "reference"
