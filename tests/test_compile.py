"""Compiled blocks: the numbers of uncompiled ones, and no more variants than are allowed for."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from conftest import ALONE, NEEDS_VECTORS, TINY
from diffusers import SD3Transformer2DModel
from ranks import ranks
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported
from torch._dynamo.utils import counters
from torch.nn import functional

from ladd_dist.config import Config, load
from ladd_dist.data.buckets import Bucket
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.compiled import VARIANTS, compile_blocks
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.sample import draw_sample
from ladd_dist.methods.registry import build_method

BUCKETS = [(4, 4), (8, 4), (8, 8)]  # of different numbers of tokens
SMALL_HEADS = [f"discriminator.{key}" for key in ("width=16", "out_width=16", "groups=4", "cond_width=16")]
PLAIN, COMPILED = ([f"{net}.compile={value}" for net in ("student", "teacher")] for value in ("false", "true"))
# AdamW's own epsilon would make whole steps of the rounding of gradients that are zero.
EXACT = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4", "train.precision=fp32", "train.global_batch=8"]
FP32 = 1e-5
# Blocks that run again meet what FSDP2 does to their inputs in the forward pass alone.
ENGINES = {
    "local": ["engine=local"],
    "fsdp2": ["engine=fsdp2", "teacher.placement=shard", "student.activation_checkpointing=true"],
}


def make_teacher(folder: Path, layers: int, positions: int = 16) -> str:
    torch.manual_seed(0)
    SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=24,
        pos_embed_max_size=positions, qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    return f"teacher.path={folder}"


def variants() -> int:
    """Variants compiled since the last reset."""
    return counters["stats"]["unique_graphs"]


torch_compile, torch_addcmul = torch.compile, torch.addcmul


def use(backend: str) -> None:
    """Start anew, compiling with a backend; ``eager`` only has torch trace and guard what it then runs as it is."""
    torch.compiler.reset()
    counters.clear()
    torch.compile = partial(torch_compile, backend=backend)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def own_cache() -> Any:
    """Each test starts with the backend that only traces, and leaves nothing behind."""
    use("eager")
    yield
    torch.compile, torch.addcmul = torch_compile, torch_addcmul
    torch.compiler.reset()


def train(world: World, config: Config, backend: str, size: int = 8) -> tuple[dict[str, Tensor], int]:
    """Two iterations on each bucket and, if ``size`` is another one, on batches of that size; every number that they
    made, and the compilations.
    """
    use(backend)
    if config.student.compile is not True:
        # PyTorch's addcmul rounds once, and torch.compile takes it apart: by that alone norms go 4e-5 apart.
        torch.addcmul = _product_and_sum
    ladd = build_method(config, world, Clock(world))
    rows = [
        ladd.iteration(index, [sample(config, world, index, size)])
        for size in dict.fromkeys((8, size)) for index in range(2 * len(BUCKETS))
    ]  # fmt: skip
    torch.compile, torch.addcmul = torch_compile, torch_addcmul
    numbers = {key: world_mean(world, torch.stack([row[key] for row in rows])) for key in rows[0]}
    return numbers | weights(ladd, config, len(rows)), variants()


def _product_and_sum(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x + a * b


def world_mean(world: World, value: Tensor) -> Tensor:
    value = value.clone()
    world.mean_([value])
    return value


def sample(config: Config, world: World, index: int, size: int) -> Any:
    """This rank's share of a global batch of one bucket."""
    height, width = BUCKETS[index % len(BUCKETS)]
    draw = torch.Generator().manual_seed(index)
    latents, context, pooled = (
        torch.randn(size, *shape, generator=draw) for shape in ((4, height, width), (6, 24), (24,))
    )
    own = slice(world.rank * size // world.size, (world.rank + 1) * size // world.size)
    batch = Batch(latents[own], Conditioning(context[own], pooled[own]), list(range(size))[own], f"{height}x{width}")
    return draw_sample(config.method, config.seed, index, batch, (height, width))


def weights(ladd: Ladd, config: Config, iterations: int) -> dict[str, Tensor]:
    """Of student and heads, with what AdamW moves them at most in so many iterations as the unit."""
    trained = ("student", ladd.student, config.student_optimizer), ("heads", ladd.heads, config.head_optimizer)
    return {
        f"{network} {name} {shard.offset}": shard.local.clone() / (optimizer.lr * iterations)
        for network, engine, optimizer in trained
        for name, shard in engine.shards().items()
    }


def run(engine: str, *args: Any) -> list[tuple[dict[str, Tensor], int]]:
    return [train(ALONE, *args)] if engine == "local" else ranks(2)(train, *args, timeout=1200)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Losses, logits and norms, each relative to its size over the run, and every tensor of `weights` as it is.

    But for a rounding of the weight itself: of one near 1 it is more than a hundred-thousandth of what AdamW can do.
    What was not there to be measured in one run was not in the other.
    """
    absent = [{key: value.isnan().tolist() for key, value in run.items()} for run in (ours, theirs)]
    assert absent[0] == absent[1]
    ours, theirs = ({key: value.nan_to_num() for key, value in run.items()} for run in (ours, theirs))
    rounding = torch.finfo(torch.float32).eps / FP32
    sizes = {
        key: value.numel() ** 0.5 + rounding * value.norm() if " " in key else value.norm()
        for key, value in theirs.items()
    }
    far = {key: float((ours[key] - value).norm() / sizes[key]) for key, value in theirs.items() if value.any()}
    assert {key: distance for key, distance in far.items() if not distance < FP32} == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_three_buckets_take_one_variant_each_way_a_block_is_run(tmp_path: Path, engine: str) -> None:
    """Three blocks of two kinds in the order with two passes: the student runs without gradient, too."""
    recomputed = f"teacher.activation_checkpointing={str(engine == 'fsdp2').lower()}"
    settings = [
        make_teacher(tmp_path, 3),
        *SMALL_HEADS,
        *EXACT,
        *ENGINES[engine],
        "method.fake_pass=two_pass",
        recomputed,
    ]
    plain = run(engine, load(TINY, [*settings, *PLAIN]), "eager")
    compiled = run(engine, load(TINY, settings + COMPILED), "eager")
    for (theirs, none), (ours, count) in zip(plain, compiled, strict=True):
        assert_same(ours, theirs)
        # Each network has two kinds, without gradient and with; in the teacher's first block the text has none.
        assert (none, count) == (0, 9)


def test_copies_of_weights_take_no_more_variants(tmp_path: Path) -> None:
    """One process in bf16 has its blocks run on those."""
    settings = [make_teacher(tmp_path, 3), *SMALL_HEADS, *EXACT, "method.fake_pass=two_pass", "train.precision=bf16"]
    ((_, count),) = run("local", load(TINY, [*settings, *COMPILED, "engine=local"]), "eager")
    assert count == 9


@pytest.mark.slow
def test_recomputation_over_all_shipped_buckets_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD3.5 Large's nine, at 64 pixels a position: of the same shapes, a block is compiled as often as for three."""
    shipped = [Bucket.parse(name) for name in load("configs/sd35_large.yaml").synthesis.buckets]
    sizes = [(bucket.height // 64, bucket.width // 64) for bucket in shipped]
    assert len(set(sizes)) == 9
    monkeypatch.setattr(sys.modules[__name__], "BUCKETS", sizes)
    recompute = ["student.activation_checkpointing=selective", "teacher.activation_checkpointing=true"]
    settings = [make_teacher(tmp_path, 3, 32), *SMALL_HEADS, *EXACT, *COMPILED, *recompute]
    ((_, count),) = run("local", load(TINY, [*settings, "method.fake_pass=two_pass"]), "eager")
    assert count == 9


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "size"), [("local", 1), ("fsdp2", 2)])
def test_a_student_of_adapters_takes_as_many_again_without_them(tmp_path: Path, engine: str, size: int) -> None:
    """One network is student, teacher and backbone; batches of several samples, and of one for each rank."""
    settings = [make_teacher(tmp_path, 3), *SMALL_HEADS, *EXACT, *ENGINES[engine], "method.fake_pass=two_pass"]
    settings += ["student.lora.rank=2", "teacher.placement=replicate"]
    plain = run(engine, load(TINY, [*settings, "student.compile=false"]), "eager", size)
    compiled = run(engine, load(TINY, [*settings, "student.compile=true"]), "eager", size)
    for (theirs, none), (ours, count) in zip(plain, compiled, strict=True):
        assert_same(ours, theirs)
        # Of two kinds, with and without adapters, without gradient and with; the first block's text, or with adapters
        # all that it is given, has none.
        assert (none, count) == (0, 2 * 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "backend"), [pytest.param("local", "inductor", marks=NEEDS_VECTORS), ("fsdp2", "aot_eager")]
)
def test_compiled_code_makes_the_same_numbers(tmp_path: Path, engine: str, backend: str) -> None:
    """One block of the student: g++ takes most of the time, so FSDP2 has its graphs split and not translated."""
    settings = [make_teacher(tmp_path, 1), *SMALL_HEADS, *EXACT, *ENGINES[engine]]
    plain = run(engine, load(TINY, [*settings, *PLAIN]), backend)
    compiled = run(engine, load(TINY, [*settings, *PLAIN, "student.compile=true"]), backend)
    for (theirs, _), (ours, count) in zip(plain, compiled, strict=True):
        assert_same(ours, theirs)
        assert count == 1


class Scale(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Speaks(Scale):
    def forward(self, x: Tensor) -> Tensor:
        print("not for a graph")
        return super().forward(x)


def test_blocks_of_a_kind_share_their_code_and_keep_their_weights() -> None:
    blocks = [Scale(2.0), Scale(3.0), Scale(4.0)]
    compile_blocks(blocks)
    with torch.no_grad():
        assert [float(block(torch.ones(2))[0]) for block in blocks] == [2.0, 3.0, 4.0]
    assert variants() == 1


class Gelu(nn.Module):
    """As an MLP of SD3 has it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")


@pytest.mark.slow
@NEEDS_VECTORS
def test_generated_gelu_is_exact_where_its_tanh_is_not() -> None:
    """In fp32, with its gradient; tanh's own relative error near 0 is without bound."""
    use("inductor")
    x = torch.linspace(-12, 12, 10_001, requires_grad=True)
    block = Gelu()
    exact = block(x.double())
    with inductor.patch({"cpp.use_decompose_tanh": False}):
        compile_blocks([block])
        assert inductor.cpp.use_decompose_tanh
        ours = block(x)
        pairs = [(ours.double(), exact), tuple(torch.autograd.grad(y.sum(), x)[0] for y in (ours, exact))]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)


def test_code_on_disk_is_that_of_the_vector_width_here() -> None:
    """The key of inductor's cache is made of its settings, and a width that they leave open is no part of it."""
    with inductor.patch({"cpp.simdlen": None}):
        compile_blocks([Scale()])
        width = inductor.save_config_portable()["cpp.simdlen"]
    assert width == {"AVX512": 512, "AVX2": 256, "DEFAULT": 1}.get(torch.backends.cpu.get_cpu_capability())


def test_more_variants_than_allowed_for_are_an_error() -> None:
    block = Scale()
    compile_blocks([block])
    for dimensions in range(1, VARIANTS + 1):
        block(torch.ones([2] * dimensions))
    with pytest.raises(FailOnRecompileLimitHit):
        block(torch.ones([2] * (VARIANTS + 1)))
    assert variants() == VARIANTS


def test_what_cannot_be_compiled_whole_is_an_error() -> None:
    block = Speaks()
    compile_blocks([block])
    with pytest.raises(Unsupported):
        block(torch.ones(2))
