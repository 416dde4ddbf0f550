"""The step against plain autograd through everything, written out independently."""

import copy
import math

import pytest
import torch
from corners import smoothed
from diffusers import SD3Transformer2DModel

from ladd_dist.config import DiscriminatorConfig, OptimizerConfig, load
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.methods.ladd.heads import DiscriminatorHeads
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.sample import draw_sample
from ladd_dist.models.sd3.transformer import Sd3Backbone

CPU = World(0, 1, 0, torch.device("cpu"))
LR = OptimizerConfig(lr=1e-3, betas=[0.0, 0.99], clip_norm=1e9)


def config(*overrides):
    base = ["method.warmup_iterations=2", "train.global_batch=4", "train.micro_batch=4"]
    return load("configs/tiny_cpu.yaml", base + list(overrides))


def transformer(seed):
    torch.manual_seed(seed)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    return Sd3Backbone(net)


def system(cfg):
    teacher = transformer(0).requires_grad_(False).eval()
    student = ReplicatedEngine(transformer(1), LR, torch.float32, CPU)
    torch.manual_seed(2)
    widths = DiscriminatorConfig(width=16, out_width=8, groups=4, cond_width=8, student_time=True)
    heads = DiscriminatorHeads(widths, 2, 32, 12)
    return Ladd(cfg, student, teacher, ReplicatedEngine(heads, LR, torch.float32, CPU), Clock(CPU))


def batch(size=4, first=0):
    g = torch.Generator().manual_seed(3)
    latents, context, pooled = (torch.randn(8, *s, generator=g) for s in ((4, 8, 12), (5, 24), (12,)))
    rows = slice(first, first + size)
    ids = list(range(first, first + size))
    others = Conditioning(context.roll(1, 0)[rows], pooled.roll(1, 0)[rows])
    return Batch(latents[rows], Conditioning(context[rows], pooled[rows]), ids, "x", others)


def sample(cfg, index=5, **kwargs):
    return draw_sample(cfg.method, cfg.seed, index, batch(**kwargs), (4, 6))


def gradients_of(engine, run):
    """Gradients an engine accumulates in ``run``, its update suppressed."""
    engine.module.zero_grad()
    run()
    return {n: p.grad.clone() for n, p in engine.module.named_parameters() if p.grad is not None}


PAIRS = "method.loss=relativistic"


@pytest.mark.parametrize("settings", [(), ("method.loss=softplus", "method.distillation_weight=0.5"), (PAIRS,)])
def test_student_gradient_equals_autograd_through_the_whole_chain(settings):
    cfg = config(*settings)
    ladd, s = system(cfg), sample(cfg)
    got = gradients_of(ladd.student, lambda: ladd.train_student(s, ladd.predict(s), 1.0, True))

    student, teacher, heads = ladd.student.module, ladd.teacher, ladd.heads.module
    x0, c, view = s.batch.latents, s.batch.cond, (-1, 1, 1, 1)
    t, level = s.t.view(view), s.s.view(view)
    x_t = (1 - t) * x0 + t * s.draws.student_noise
    x0_hat = x_t - t * student(x_t, s.t, c)
    features = teacher((1 - level) * x0_hat + level * s.draws.fake_noise, s.s, c, (0, 1))
    logits = heads(features, (4, 6), s.s, c.pooled, student_time=s.t)
    loss = -logits.mean()
    if "method.loss=softplus" in settings:
        error = (x_t - x0_hat) / t - (s.draws.student_noise - x0)
        loss = torch.nn.functional.softplus(-logits).mean() + 0.5 * error.square().mean()
    expected = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    compared = 0
    for (name, _), gradient in zip(student.named_parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-8)
            compared += int(gradient.abs().max() > 0)
    assert compared > 30


@pytest.mark.parametrize("loss_name", ["hinge", "relativistic"])
@pytest.mark.parametrize(("r1", "mismatched"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5)])
@pytest.mark.parametrize("order", ["shared", "two_pass"])
def test_head_gradient_equals_autograd_of_the_discriminator_loss(r1, mismatched, order, loss_name):
    weights = f"method.r1_weight={r1}", f"method.mismatched_weight={mismatched}"
    cfg = config(*weights, f"method.fake_pass={order}", f"method.loss={loss_name}", "discriminator.kept_features=1")
    ladd, s = system(cfg), sample(cfg)
    predicted = ladd.predict(s) if order == "shared" else None
    got = gradients_of(ladd.heads, lambda: ladd.train_heads(s, predicted, 1.0))

    heads, c, view = ladd.heads.module, s.batch.cond, (-1, 1, 1, 1)
    x_r = (1 - s.r.view(view)) * s.batch.latents + s.r.view(view) * s.draws.real_noise
    real = [f.detach().requires_grad_() for f in ladd.teacher(x_r, s.r, c, (0, 1))]
    fake = [f.detach() for f in ladd.predict(s).features]
    d_real = heads(real, (4, 6), s.r, c.pooled, student_time=s.t)
    d_fake = heads(fake, (4, 6), s.s, c.pooled, student_time=s.t)
    in_pairs, softplus = loss_name == "relativistic", torch.nn.functional.softplus
    if in_pairs:
        loss = softplus(d_fake - d_real).mean() + 1e-3 * d_real.square().mean()
    else:
        loss = torch.relu(1 - d_real).mean() + torch.relu(1 + d_fake).mean()
    per_sample = torch.autograd.grad(d_real.sum() / math.sqrt(24), real, create_graph=True)
    loss = loss + r1 * sum(g.square().sum() for g in per_sample) / (2 * 4)
    if mismatched:
        other = s.batch.mismatched
        wrong = [f.detach() for f in ladd.teacher(x_r, s.r, other, (0, 1))]
        d_wrong = heads(wrong, (4, 6), s.r, other.pooled, student_time=s.t)
        # The real latents' own logits are a number in this term: they were trained as one side of their pair.
        each = softplus(d_wrong - d_real.detach()) if in_pairs else torch.relu(1 + d_wrong)
        loss = loss + mismatched * each.mean()
    expected = torch.autograd.grad(loss, list(heads.parameters()))
    for (name, _), gradient in zip(heads.named_parameters(), expected, strict=True):
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-7)


def test_nothing_but_the_trained_network_gets_a_gradient():
    cfg = config()
    ladd, s = system(cfg), sample(cfg)
    fake = ladd.predict(s)
    ladd.train_student(s, fake, 1.0, True)
    assert all(p.grad is None for p in ladd.heads.module.parameters())
    ladd.student.module.zero_grad()
    ladd.train_heads(s, fake, 1.0)
    assert all(p.grad is None for p in ladd.student.module.parameters())
    assert all(p.grad is None for p in ladd.teacher.parameters())


def weights(ladd):
    return [p.detach().clone() for e in (ladd.student, ladd.heads) for p in e.module.parameters()]


def run(cfg, micro=4, iterations=3):
    ladd = system(cfg)
    for index in range(iterations):
        parts = [sample(cfg, index, size=micro, first=i) for i in range(0, 4, micro)]
        metrics = ladd.iteration(index, parts)
    return weights(ladd), metrics


MISMATCHED = "method.mismatched_weight=0.5"


@pytest.mark.parametrize("settings", [(), (MISMATCHED,), (MISMATCHED, PAIRS)])
def test_two_pass_order_makes_the_same_updates_as_the_shared_pass(settings):
    with smoothed():
        shared, m1 = run(config(*settings))
        two_pass, m2 = run(config("method.fake_pass=two_pass", *settings))
    torch.testing.assert_close(shared, two_pass, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(m1, m2, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("settings", [(), (MISMATCHED,), (MISMATCHED, PAIRS)])
def test_micro_batches_make_the_update_of_the_whole_batch(settings):
    smooth = ["student_optimizer.eps=1.0e-3", "head_optimizer.eps=1.0e-3", "method.fake_pass=two_pass", *settings]
    with smoothed():
        whole, _ = run(config(*smooth))
        split, _ = run(config("train.micro_batch=2", *smooth), micro=2)
    torch.testing.assert_close(whole, split, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("order", ["shared", "two_pass"])
def test_mismatched_prompts_cost_a_teacher_pass_only_if_they_have_a_weight(order):
    forwards, metrics = {}, {}
    for weight in (0, 0.5):
        cfg = config(f"method.mismatched_weight={weight}", f"method.fake_pass={order}")
        ladd, calls = system(cfg), []
        ladd.teacher.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        metrics[weight] = ladd.iteration(0, [sample(cfg, 0)])
        forwards[weight] = len(calls)
        # The student's loss goes backward through the teacher once.
        assert len(calls) + 1 == Ladd.forward_backward(cfg)["teacher"]
    assert forwards[0.5] == forwards[0] + 1
    assert {*metrics[0.5]} - {*metrics[0]} == {"mismatched_logit", "mismatched_right"}
    assert metrics[0.5]["mismatched_logit"].shape == (2,)
    assert torch.equal(metrics[0.5]["d_loss"], metrics[0]["d_loss"])


def test_the_student_is_judged_by_the_updated_heads():
    cfg = config()
    ladd, s = system(cfg), sample(cfg)
    old = ladd.train_student(s, ladd.predict(s), 1.0, True)["g_loss"]
    ladd = system(cfg)
    new = ladd.iteration(5, [s])["g_loss"]
    assert not torch.isclose(old, new)


def test_of_a_pair_both_are_judged_rightly_or_neither():
    cfg = config(PAIRS, "method.renoise=same")
    metrics = system(cfg).iteration(5, [sample(cfg)])
    assert metrics["real_right"] == metrics["fake_right"] and 0 < metrics["real_right"] < 1


def test_an_iteration_moves_student_and_heads_and_not_the_teacher():
    cfg = config()
    ladd = system(cfg)
    before, teacher = weights(ladd), copy.deepcopy(ladd.teacher.state_dict())
    ladd.iteration(0, [sample(cfg, 0)])
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(ladd), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert all(torch.equal(teacher[k], v) for k, v in ladd.teacher.state_dict().items())


def test_the_report_marks_the_end_of_a_warm_up_that_there_is():
    assert Ladd.milestones(config()) == {2: "warm-up ends"}
    assert Ladd.milestones(config("method.warmup_iterations=0")) == {}


def test_warm_up_draws_only_its_own_times():
    cfg = config("method.warmup_probabilities=[0,0,.5,.5]", "method.probabilities=[1,0,0,0]")
    ids = list(range(8))
    wide = Batch(torch.zeros(8, 4, 8, 12), batch(8).cond, ids, "x")
    draw = lambda index: draw_sample(cfg.method, cfg.seed, index, wide, (4, 6)).t  # noqa: E731
    assert set(torch.cat([draw(0), draw(1)]).tolist()) == {0.5, 0.25}
    assert set(draw(2).tolist()) == {1.0}


def test_renoise_levels_are_shifted_to_the_grid_and_independent_unless_asked():
    cfg = config()
    many = Batch(
        torch.zeros(400, 4, 1, 1),
        Conditioning(torch.zeros(400, 1, 24), torch.zeros(400, 12)),
        list(range(400)),
        "x",
    )
    s = draw_sample(cfg.method, cfg.seed, 0, many, (4, 6))
    logits = torch.logit(s.s)
    assert logits.mean().item() == pytest.approx(1 + 0.5 * math.log(24 / 4096), abs=0.2)
    assert logits.std().item() == pytest.approx(1.0, abs=0.15)
    assert abs(torch.corrcoef(torch.stack([logits, torch.logit(s.r)]))[0, 1].item()) < 0.2
    same = draw_sample(config("method.renoise=same").method, 0, 0, many, (4, 6))
    assert torch.equal(same.s, same.r)
    assert not torch.equal(same.draws.fake_noise, same.draws.real_noise)
