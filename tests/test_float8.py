"""Products in 8 bits, the teacher's and the student's: how far from exact ones, what stays exact, who may not."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ALONE, NEEDS_VECTORS, TINY
from hypothesis import example, given
from hypothesis import strategies as st
from ranks import close_ranks, ranks
from test_memory import SMALL_HEADS
from torch import Tensor, nn

from ladd_dist.config import Config, load
from ladd_dist.data.buckets import Bucket
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines import compiled
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.settings import check_settings
from ladd_dist.errors import LaddError
from ladd_dist.methods.networks import teacher_blueprint
from ladd_dist.methods.registry import build_method, method_of
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.float8 import Float8Linear, TrainedFloat8Linear, quantize_rows, to_float8
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.networks import check_networks

FOLDER = Path(sys.prefix) / "8bit"
FLOAT8 = ["teacher.float8=true", "train.precision=bf16"]
LAYER = 0.05
"""Of a layer: e4m3 has four significant bits, so a value is off by 2.6% (root mean square over a binade) and a sum of
products of two such by sqrt 2 of that, 3.7%, whatever its length."""
HALF_ULP = 2**-4
"""The most that a code of normal size is off, relatively."""
sizes = st.integers(1, 6).map(lambda n: 16 * n)


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@given(sizes, st.integers(1, 40), st.integers(-20, 20), st.integers(0, 10**6))
def test_a_code_times_its_rows_scale_is_near_whatever_the_size(
    width: int, rows: int, exponent: int, seed: int
) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    codes, scale = quantize_rows(x)
    most = x.abs().amax(-1, keepdim=True)
    error = (codes.float() * scale - x).abs()
    assert bool((error <= x.abs() * HALF_ULP + most * 2.0**-17).all())  # codes below 2^-6 of 448 have a fixed step
    assert (codes.dtype, scale.shape) == (torch.float8_e4m3fn, (rows, 1))


def test_rows_of_zeros_stay_zeros_and_one_row_does_not_reach_into_another() -> None:
    x = torch.stack([torch.zeros(32), torch.full((32,), 1e4), torch.full((32,), 1e-4)])
    codes, scale = quantize_rows(x)
    torch.testing.assert_close(codes.float() * scale, x, rtol=HALF_ULP, atol=0)


def test_codes_and_scales_are_torchaos(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference: its rowwise recipe, which of a row of zeros makes NaN."""
    if not FOLDER.is_dir():
        pytest.skip("torchao is not there: `make test` installs it")
    monkeypatch.syspath_prepend(str(FOLDER))
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

    for seed, size in enumerate([(16, 16), (154, 2432), (7, 9728)]):
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        theirs, (codes, scale) = Float8Tensor.from_hp(x, granularity=PerRow()), quantize_rows(x)
        assert torch.equal(codes.view(torch.uint8), theirs.qdata.view(torch.uint8))
        assert torch.equal(scale, theirs.scale)


@pytest.mark.parametrize("kind", [Float8Linear, TrainedFloat8Linear])
@given(sizes, sizes, st.integers(1, 40), st.booleans(), st.integers(0, 10**6))
@example(48, 16, 1, True, 2902)
def test_a_layer_and_its_gradient_are_within_the_rounding_of_8_bits(
    kind: type[nn.Module], width: int, out: int, rows: int, bias: bool, seed: int
) -> None:
    """Of sums by the size of what is summed: where positive and negative products cancel, their rounding does not."""
    torch.manual_seed(seed)
    exact = nn.Linear(width, out, bias=bias)
    channels = torch.randn(out, 1).exp()  # of different sizes, as only scales of their own take them
    with torch.no_grad():
        exact.weight *= channels
    layer = kind(exact)
    x, g = torch.randn(2, rows, width, requires_grad=True), torch.randn(2, rows, out)
    ours, theirs = layer(x), exact(x)
    assert ours.dtype == torch.bfloat16
    squares = exact.weight.square()
    assert (ours - theirs).norm() < 2 * LAYER * (x.square() @ squares.T).sum().sqrt()
    (found,), (wanted,) = (torch.autograd.grad(each, x, g.to(each.dtype)) for each in (ours, theirs))
    assert (found - wanted).norm() < 2 * LAYER * (g.square() @ squares).sum().sqrt()


@given(sizes, sizes, st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 10**6))
def test_a_trained_layers_weight_has_the_gradient_of_16_bits(
    width: int, out: int, rows: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    exact = nn.Linear(width, out, dtype=dtype)
    layer, x, g = TrainedFloat8Linear(exact), torch.randn(rows, width), torch.randn(rows, out, dtype=torch.bfloat16)
    assert dict(layer.named_parameters()) == dict(exact.named_parameters())
    weight, bias = torch.autograd.grad(layer(x), (layer.weight, layer.bias), g)
    assert torch.equal(weight, (g.T @ x.bfloat16()).to(dtype)) and weight.dtype == bias.dtype == dtype


def test_a_large_layer_is_within_a_twentieth_of_the_exact_one() -> None:
    """Attention's projection of SD3.5 Large over 154 tokens, with a channel of outliers as transformers have."""
    torch.manual_seed(0)
    exact = nn.Linear(2432, 2432)
    x = torch.randn(154, 2432)
    x[:, 7] *= 30
    x.requires_grad_()
    ours, theirs, g = Float8Linear(exact)(x), exact(x), torch.randn(154, 2432)
    assert 0.01 < distance(ours, theirs) < LAYER
    (found,), (wanted,) = (torch.autograd.grad(each, x, g.to(each.dtype)) for each in (ours, theirs))
    assert 0.01 < distance(found, wanted) < LAYER


def teacher(*overrides: str) -> Backbone:
    config = load(TINY, ["train.precision=bf16", *overrides])
    net = teacher_blueprint(config, ALONE, 3).whole(ALONE.device)
    assert isinstance(net, Backbone)
    return net


def batch(samples: int = 4, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    cond = Conditioning(torch.randn(samples, 87, 64, generator=draw), torch.randn(samples, 64, generator=draw))
    return Batch(torch.randn(samples, 4, 8, 8, generator=draw), cond, list(range(samples)), "32x32", cond)


def share(whole: Batch, world: World) -> Batch:
    """A rank's."""

    def mine(x: Tensor) -> Tensor:
        return x.chunk(world.size)[world.rank]

    cond, count = Conditioning(*map(mine, whole.cond)), len(whole.ids) // world.size
    ids = whole.ids[count * world.rank :][:count]
    return Batch(mine(whole.latents), cond, ids, whole.bucket, cond)


def test_the_digit_teachers_features_and_gradient_stay_near() -> None:
    """Errors of a block add to those before it in the residual stream, which carries most of the features on."""
    nets, sample, found = (teacher(), teacher("teacher.float8=true")), batch(), []
    for net in nets:
        x = sample.latents.clone().requires_grad_()
        features: list[Tensor] = net(x, torch.full((4,), 0.6), sample.cond, (0, 1, 2, 3))  # type: ignore[assignment]
        (gradient,) = torch.autograd.grad(sum(f.float().square().mean() for f in features), x)  # type: ignore[arg-type]
        found.append(([f.detach() for f in features], gradient))
    (exact, wanted), (ours, gradient) = found
    assert all(0.005 < distance(a, b) < 0.1 for a, b in zip(ours, exact, strict=True))
    assert 0.005 < distance(gradient, wanted) < 0.2


def test_what_every_token_passes_is_in_8_bits_and_all_else_is_not() -> None:
    net = teacher("teacher.float8=true")
    quantized = {name for name, module in net.named_modules() if isinstance(module, Float8Linear)}
    exact = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert quantized == set(teacher().token_layers())
    assert not any("norm" in name or "embed" in name for name in quantized)
    assert exact and all("norm" in name or "embed" in name for name in exact)
    assert {p.dtype for name, p in net.named_parameters() if name.rpartition(".")[0] not in quantized} == {
        torch.bfloat16
    }


def first_iteration(*overrides: str, world: World = ALONE, of: Batch | None = None) -> dict[str, Tensor]:
    """Metrics of the first update of student and heads: later ones are of weights that go apart."""
    whole = of or batch()
    settings = ["train.precision=bf16", f"train.global_batch={len(whole.ids)}"]
    config = load(TINY, [*SMALL_HEADS, *settings, *overrides])
    method = build_method(config, world, Clock(world))
    sample = method.sample(0, 0, share(whole, world), (8, 8))
    return {name: value.float() for name, value in method.iteration(0, [sample]).items()}


def over_several(*overrides: str) -> dict[str, Tensor]:
    """Means over first iterations of several batches: the norm of one's gradient may be a quarter off by chance."""
    found = [first_iteration(*overrides, of=batch(16, seed)) for seed in range(4)]
    return {name: torch.stack([metrics[name] for metrics in found]).mean(0) for name in found[0]}


def assert_near(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Logits are about 0 at first, and losses means of them."""
    for name in ("d_loss", "g_loss", "real_logit", "student_grad_norm", "head_grad_norm"):
        torch.testing.assert_close(
            ours[name], exact[name], rtol=0.2, atol=0.05, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("order", ["shared", "two_pass"])
def test_a_step_on_it_is_near_that_on_an_exact_teacher(order: str) -> None:
    common = [f"method.fake_pass={order}", "method.r1_weight=0.01", "teacher.activation_checkpointing=true"]
    exact, ours = over_several(*common), over_several(*common, "teacher.float8=true")
    assert_near(ours, exact)
    assert not torch.equal(ours["student_grad_norm"], exact["student_grad_norm"])


@pytest.mark.parametrize("recomputed", ["false", "true", "selective"])
def test_a_step_of_a_student_with_it_is_near_that_of_an_exact_one(recomputed: str) -> None:
    common = [f"student.activation_checkpointing={recomputed}"]
    exact, ours = first_iteration(*common), first_iteration(*common, "student.float8=true")
    assert_near(ours, exact)
    assert not torch.equal(ours["student_grad_norm"], exact["student_grad_norm"])


def norms(world: World, overrides: list[str]) -> tuple[float, float]:
    """Of the gradients of a first update, over all ranks."""
    found = first_iteration(*overrides, world=world)
    return float(found["student_grad_norm"]), float(found["head_grad_norm"])


@pytest.mark.slow
def test_sharded_ranks_make_the_gradient_of_one_process() -> None:
    """All make codes of weights in bf16; of activations, which are rounded elsewhere, some are others."""
    common = ["student.float8=true", "student.activation_checkpointing=true"]
    try:
        found = ranks(2)(norms, ["engine=fsdp2", *common])
    finally:
        close_ranks()
    assert found[0] == found[1] == pytest.approx(norms(ALONE, common), rel=0.02)


@pytest.mark.slow
def test_a_compiled_step_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and cut into two passes; what is generated for these layers is held below."""
    monkeypatch.setitem(compiled._OPTIONS, "backend", "aot_eager")
    torch.compiler.reset()
    both = "teacher.float8=true", "student.float8=true"
    exact, ours = (
        first_iteration(*both, f"teacher.compile={told}", f"student.compile={told}") for told in ("false", "true")
    )
    assert_near(ours, exact)


@pytest.mark.slow
@NEEDS_VECTORS
@pytest.mark.parametrize("kind", [Float8Linear, TrainedFloat8Linear])
def test_generated_code_computes_the_same(kind: type[nn.Module]) -> None:
    """In the place that it has in a block: what comes before and after a layer is put into its kernels."""
    torch.manual_seed(0)
    before, after = (kind(nn.Linear(64, 64)) for _ in range(2))
    block = nn.Sequential(nn.LayerNorm(64), before, nn.GELU(approximate="tanh"), after)
    x, g = torch.randn(2, 40, 64, requires_grad=True), torch.randn(2, 40, 64, dtype=torch.bfloat16)
    learn = [x, *(p for p in block.parameters() if p.requires_grad)]

    def passes() -> list[Tensor]:
        out = block(x)
        return [out.detach(), *torch.autograd.grad(out, learn, g)]

    exact = passes()
    compiled.compile_blocks([block])
    ours = passes()
    assert compiled.is_compiled(block)
    assert all(distance(a, b) < LAYER / 2 for a, b in zip(ours, exact, strict=True))


def test_the_planner_counts_its_products_apart_and_its_memory_less() -> None:
    bucket, gpu = Bucket(32, 64), CARDS["H100"].device
    plain, ours = (Costs(load(TINY, ["train.precision=bf16", *more]), bucket, gpu) for more in ([], FLOAT8[:1]))
    passed = next(
        p for p in method_of(load(TINY)).passes(load(TINY)) if p.network == "teacher" and p.gradient == "inputs"
    )
    before, after = plain.of(passed, False), ours.of(passed, False)
    for exact, work in ((before.forward, after.forward), (before.backward, after.backward)):
        assert work.matmul + work.float8 == exact.matmul and work.attention == exact.attention
        assert 0.5 < work.float8 / exact.matmul < 1
    assert after.kept < 1.01 * before.kept


def test_the_planner_counts_the_students_products_and_no_memory_more() -> None:
    """Backward the input's gradients are in 8 bits, as many as the forward pass has, and the weights' are not."""
    plain, ours = (
        Costs(load(TINY, ["train.precision=bf16", f"student.float8={told}"]), Bucket(32, 64), CARDS["H100"].device)
        for told in ("false", "true")
    )
    (passed,) = (p for p in method_of(load(TINY)).passes(load(TINY)) if p.network == "student")
    before, after = plain.of(passed, False), ours.of(passed, False)
    for exact, work in ((before.forward, after.forward), (before.backward, after.backward)):
        assert work.matmul + work.float8 == exact.matmul and work.attention == exact.attention
    assert after.backward.float8 == after.forward.float8 > 0.5 * before.forward.matmul
    assert after.kept < 1.01 * before.kept


class _Gpu:
    """A GPU of some kind, for what is asked of it before a start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)


GPU = World(0, 1, 0, torch.device("cuda"))


@pytest.mark.parametrize(
    ("capability", "hip", "said"),
    [
        (
            (8, 0),
            None,
            "{}.float8=true needs compute capability 8.9, and Pretended GPU has 8.0: set {}.float8=false",
        ),
        (
            (9, 4),
            "6.4",
            "{}.float8=true is for NVIDIA's GPUs, and not for Pretended GPU: set {}.float8=false",
        ),
    ],
)
def test_a_gpu_without_such_products_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, said: str
) -> None:
    _Gpu(monkeypatch, capability, hip)
    for network in ("teacher", "student"):
        with pytest.raises(LaddError) as refused:
            check_launch(load(TINY, ["train.precision=bf16", f"{network}.float8=true"]), GPU)
        assert str(refused.value) == said.format(network, network)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_others_and_a_cpu_are_taken(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    _Gpu(monkeypatch, capability)
    check_launch(load(TINY, FLOAT8), GPU)
    check_launch(load(TINY, FLOAT8), ALONE)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.precision=fp32"], "teacher.float8=true, but train.precision=fp32: set train.precision=bf16"),
        (["teacher.float8=false", "student.float8=true", "train.precision=fp32"], "student.float8=true, but train"),
        (
            ["teacher.float8=false", "student.float8=true", "student.lora.rank=2"],
            "student.float8=true is for a student that is trained whole: set student.lora=null",
        ),
        (["teacher.placement=shard"], "but teacher.placement=shard: set teacher.placement=replicate"),
        (
            ["student.lora.rank=2"],
            "teacher.float8=True is of no use: with student.lora the teacher is the student's base",
        ),
        (
            ["method={name: flow_matching}", "head_optimizer=null", "discriminator={}"],
            "teacher.float8=True is of no use: method.name=flow_matching builds no frozen teacher",
        ),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(LaddError, match=said.replace("(", "[(]")):
        load(TINY, [*FLOAT8, *overrides])


def test_a_teacher_that_has_no_such_layers_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Config = load(TINY, FLOAT8)
    check_networks(config)
    monkeypatch.setattr("ladd_dist.models.sd3.transformer.Sd3Backbone.token_layers", lambda net: [])
    with pytest.raises(LaddError, match="this kind of teacher has no layers for it: set teacher.float8=false"):
        check_networks(config)
    with pytest.raises(LaddError, match="takes widths in multiples of 16, but 0 is 24 to 32"):
        to_float8(nn.Sequential(nn.Linear(24, 32)), ["0"], "teacher")


def test_zero3_which_has_linear_layers_of_its_own_is_refused() -> None:
    config = load(TINY, ["engine=zero3", "train.precision=bf16", "student.float8=true"])
    with pytest.raises(
        LaddError, match="student.float8=true: engine=zero3 has linear layers of its own; set engine="
    ):
        check_settings(config)
