"""What a plan counts without storage is what real networks do: arithmetic, kept bytes, the worst moment of a step."""

import json

import pytest
import torch
from conftest import TINY
from counting import Operators
from test_configs import SD35_LARGE, SD35_VAE

from ladd_dist.config import load
from ladd_dist.data.buckets import Bucket
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.methods.passes import Pass
from ladd_dist.methods.registry import build_method, method_of
from ladd_dist.planning.activations import checkpointed, moments
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.counting import Counter

CPU = World(0, 1, 0, torch.device("cpu"))
BUCKET = Bucket(32, 64)
SAMPLES = 8
KEPT, TWO_PASS = "discriminator.kept_features=1", "method.fake_pass=two_pass"
PAIRS = "method.loss=relativistic"
BOTH = ["student.activation_checkpointing=true", "teacher.activation_checkpointing=true"]
SELECTIVE = [setting.replace("true", "selective") for setting in BOTH]
CASES = [
    [],
    BOTH,
    SELECTIVE,
    [TWO_PASS, KEPT],
    ["method.r1_weight=0.1", "method.mismatched_weight=0.5", KEPT],
    [PAIRS, "method.mismatched_weight=0.5"],
    [PAIRS, TWO_PASS, KEPT, "discriminator.student_time=true"],
]


@pytest.fixture(scope="module")
def large_teacher(tmp_path_factory):
    """SD3.5 Large as its configs alone."""
    folder = tmp_path_factory.mktemp("large")
    for name, content in {"transformer": SD35_LARGE, "vae": SD35_VAE}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))
    return folder


def small(*overrides):
    return load(TINY, list(overrides))


def real_batch(config, costs):
    draw = torch.Generator().manual_seed(0)
    tokens, channels = costs._context
    pooled = costs._nets["student"].pooled_width
    cond = Conditioning(
        torch.randn(SAMPLES, tokens, channels, generator=draw), torch.randn(SAMPLES, pooled, generator=draw)
    )
    return Batch(torch.randn(SAMPLES, *costs._shape, generator=draw), cond, list(range(SAMPLES)), BUCKET.name, cond)


def trained(config, costs):
    """A method that has made one iteration, so that its state is there, and what it takes for another."""
    method = build_method(config, CPU, Clock(CPU))
    sample = method.sample(0, 0, real_batch(config, costs), costs.grid)
    method.iteration(0, [sample])
    return method, sample


@pytest.mark.parametrize("overrides", CASES, ids=lambda o: " ".join(o) or "default")
def test_a_whole_iteration_does_and_holds_what_its_passes_add_up_to(overrides):
    config = small(*overrides)
    costs = Costs(config, BUCKET, "cpu")
    method, sample = trained(config, costs)
    with Counter() as counter:
        method.iteration(0, [sample])
    passes = method_of(config).passes(config)
    found = [costs.of(p, checkpointed(config, p.network), SAMPLES) for p in passes]
    flops = sum(cost.forward.flops + cost.backward.flops for cost in found)
    assert flops == pytest.approx(counter.work.flops, rel=0.05)
    # Which of a convolution's tensors are copied for its kernel is the device's own matter.
    peak = max(moment.bytes for moment in moments(config, costs, SAMPLES))
    assert peak == pytest.approx(counter.peak, rel=0.06)


@pytest.fixture(scope="module")
def plain():
    config = small()
    costs = Costs(config, BUCKET, "cpu")
    return config, costs, *trained(config, costs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_bytes_are_those_that_autograd_saves(plain, checkpointing):
    _, costs, method, sample = plain
    net = method.student.module
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    net.activation_checkpointing = checkpointing
    x = sample.batch.latents.clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x, sample.t, sample.batch.cond)
    net.activation_checkpointing = False
    total = sum(size for place, size in saved.items() if place not in weights)
    kept = costs.of(Pass("student", "weights"), checkpointing, SAMPLES).kept
    assert kept == pytest.approx(total + out.untyped_storage().nbytes(), rel=0.05)


def test_flops_are_pytorchs_own_count(plain):
    _, costs, method, sample = plain
    with Operators() as real:
        method.student.module(sample.batch.latents, sample.t, sample.batch.cond).sum().backward()
    cost = costs.of(Pass("student", "weights"), False, SAMPLES)
    assert cost.forward.flops + cost.backward.flops == pytest.approx(real.flops, rel=0.05)


def test_heads_are_what_their_formula_says(plain):
    """Per position: project D to K, two 3x3 convolutions to K and O channels, and O products for the logit."""
    config, costs, *_ = plain
    d, widths = costs._width, config.discriminator
    k, o = widths.width, widths.out_width
    positions = SAMPLES * costs.heads * costs.grid[0] * costs.grid[1]
    project, convolve = 2 * d * k, 2 * 9 * k * (k + o)
    forward = positions * (project + convolve)
    by_weights = costs.of(Pass("heads", "weights"), False, SAMPLES)
    by_inputs = costs.of(Pass("heads", "inputs"), False, SAMPLES)
    assert by_weights.forward.flops == pytest.approx(forward, rel=0.05)
    # To weights: everything but the projection has a gradient of its weights and one of its inputs.
    assert by_weights.backward.flops == pytest.approx(positions * (project + 2 * convolve), rel=0.05)
    assert by_inputs.backward.flops == pytest.approx(forward, rel=0.05)


@pytest.mark.parametrize(("gpu", "kept"), [("NVIDIA H100 80GB HBM3", 12.7e9), ("NVIDIA H200", 7.9e9)])
def test_sd35_large_at_1024_by_1024(large_teacher, gpu, kept):
    """2 x parameters x tokens would say three times as much: modulation runs once for a sample."""
    config = load(
        "configs/sd35_large.yaml", [f"teacher.path={large_teacher}", "student.activation_checkpointing=false"]
    )
    costs = Costs(config, Bucket(1024, 1024), gpu)
    student = costs.of(Pass("student", "weights"), False)
    teacher = costs.of(Pass("teacher", "inputs", features=True), False)
    assert student.forward.flops / 1e12 == pytest.approx(29.6, abs=0.05)
    assert student.backward.flops / 1e12 == pytest.approx(62.5, abs=0.05)
    assert teacher.backward.flops / 1e12 == pytest.approx(39.6, abs=0.05)
    # The H200 is known to take the fused attention, which keeps no normalised queries and keys.
    assert teacher.kept == pytest.approx(kept, rel=0.02)
    look = costs.of(Pass("teacher", features=True), False)
    both = (student.forward, student.backward, teacher.forward, teacher.backward, look.forward)
    assert sum(work.flops for work in both) / 1e12 == pytest.approx(191, abs=0.5)
    again = costs.of(Pass("student", "weights"), True)
    recomputed = again.backward.flops - student.backward.flops
    assert recomputed == pytest.approx(student.forward.flops, rel=0.01)  # all but embeddings and output layers
    assert again.kept < student.kept / 18
    # A third of a block's matrix products, those to the feed-forward layers' inner width; and no attention.
    selective = costs.of(Pass("student", "weights"), "selective")
    assert selective.backward.attention == student.backward.attention
    recomputed = selective.backward.matmul - student.backward.matmul
    assert recomputed == pytest.approx(student.forward.matmul / 3, rel=0.05)
    assert selective.kept / 1e9 == pytest.approx(5.6, abs=0.1)
