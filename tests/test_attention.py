"""kernels.attention: what is picked and said, and a student that computes the same whichever runs."""

import json
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import tiny_config
from diffusers import SD3Transformer2DModel
from ranks import ENGINES, ranks
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.profiler import profile

from kernels import SDPA_BACKENDS, measured, sdpa_obstacle
from ladd_dist.config import Config, load
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.models.sd3 import attention as chosen
from ladd_dist.models.sd3.attention import Attention, JointAttentionProcessor, choose_attention, set_attention
from ladd_dist.models.sd3.transformer import Sd3Backbone
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

LARGE = {"attention_head_dim": 64, "qk_norm": "rms_norm", "sample_size": 128, "patch_size": 2}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OURS, WITH_LIBRARY, EAGER, COMPILED = (
    "triton", "triton + flash backward", "diffusers eager", "diffusers compiled",
)  # fmt: skip


def choose(setting: str, config: dict, device: torch.device, compiled: bool = False) -> Attention:
    return choose_attention(setting, config, device, torch.bfloat16, compiled)


FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture
def gpu(monkeypatch):
    """One that has what a Hopper GPU has in bf16; returns a function that takes a backend away."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended GPU")
    missing = set()
    obstacle = "{} is not there".format
    monkeypatch.setattr(chosen, "sdpa_obstacle", lambda name, *_: obstacle(name) if name in missing else "")
    return missing.add


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Write the measured table: milliseconds by provider, at 4,096 and at 1,024 tokens."""

    def write(*rows: dict) -> None:
        key = {"op": "joint_attention", "gpu": "Pretended GPU", "dtype": "bf16", "head_dim": 64}
        path = tmp_path / "measured.json"
        path.write_text(json.dumps([key | row for row in rows]))
        monkeypatch.setattr(measured.fastest, "__defaults__", (path,))

    return write


def times(image: int, **p50: float) -> dict:
    return {"image": image, "p50_ms": {OURS: 1.0, WITH_LIBRARY: 1.1, EAGER: 1.2, COMPILED: 0.9} | p50}


def test_the_cpu_keeps_diffusers_numbers():
    choice = choose("auto", LARGE, CPU)
    assert str(choice) == "diffusers over SDPA (there is no Triton for device cpu)"


@pytest.mark.parametrize(
    ("config", "device", "words"),
    [
        (LARGE, CPU, "kernels.attention=triton: there is no Triton for device cpu; set kernels.attention=auto"),
        (LARGE | {"attention_head_dim": 16}, GPU, "no head_dim of 16, only 32, 64, 128"),
        (LARGE | {"qk_norm": "layer_norm"}, GPU, "no qk_norm of layer_norm"),
    ],
)
def test_triton_where_it_cannot_run_is_refused(gpu, config, device, words):
    with pytest.raises(LaddError, match=words):
        choose("triton", config, device)
    choice = choose("auto", config, device)
    assert choice.implementation == ("diffusers" if device == CPU else "flash")
    assert re.search(words if device == GPU else "no Triton", choice.reason)


@pytest.mark.parametrize("name", ["triton", *SDPA_BACKENDS])
def test_a_named_attention_is_taken_or_refused(gpu, name):
    assert choose(name, LARGE, GPU) == Attention(name, "own", f"as kernels.attention={name} asks")
    gpu(name)
    if name != "triton":
        with pytest.raises(
            LaddError, match=f"^kernels.attention={name}: {name} is not there; set kernels.att.*=auto$"
        ):
            choose(name, LARGE, GPU)


def test_auto_names_what_it_takes_where_nothing_was_measured(gpu, table):
    table()
    words = "no faster one was measured on Pretended GPU in bf16: run make gpu-check there, or name one"
    assert str(choose("auto", LARGE, GPU)) == f"diffusers over PyTorch's flash attention ({words})"
    gpu("flash")
    assert str(choose("auto", LARGE, GPU)) == f"diffusers over PyTorch's efficient attention ({words})"
    gpu("efficient")
    with pytest.raises(LaddError, match="kernels.attention=auto: efficient is not there; choose another train.prec"):
        choose("auto", LARGE, GPU)


def test_pytorch_itself_says_what_the_cpu_has():
    assert sdpa_obstacle("flash", CPU, torch.float32, 64) == ""
    assert choose("flash", LARGE, CPU).implementation == "flash"
    for name in ("cudnn", "efficient"):
        words = f"PyTorch has no {name} attention in bf16 with head_dim 64 on cpu; set kernels.attention=auto"
        with pytest.raises(LaddError, match=words):
            choose(name, LARGE, CPU)


def test_the_shipped_table_holds_nothing_that_was_not_measured():
    assert all(row["commit"] and row["date"] for row in json.loads(measured.TABLE.read_text()))


def test_auto_takes_the_fastest_at_the_nearest_size(gpu, table):
    table(times(4096), times(1024, triton=9.0))
    assert choose("auto", LARGE, GPU) == Attention(
        "triton", "own", "ms at 4096 image tokens on Pretended GPU: triton 1.000, triton + flash backward 1.100, "
        "diffusers eager 1.200",
    )  # fmt: skip
    # PyTorch's choice was faster, and nobody knows which it was.
    assert choose("auto", LARGE, GPU, compiled=True).reason.startswith("no faster one was measured")
    assert choose("auto", LARGE | {"sample_size": 64}, GPU).backward == "flash"
    assert choose("auto", LARGE | {"attention_head_dim": 128}, GPU).implementation == "flash"


def test_auto_takes_pytorchs_fastest_by_name(gpu, table):
    around = {f"compiled around SDPA {name}": ms for name, ms in (("flash", 1.5), ("cuDNN", 0.8), ("efficient", 3.0))}
    table(times(4096, **around))
    assert str(choose("auto", LARGE, GPU, compiled=True)) == (
        "diffusers over PyTorch's cudnn attention (ms at 4096 image tokens on Pretended GPU: triton 1.000, "
        "triton + flash backward 1.100, compiled around SDPA flash 1.500, compiled around SDPA cuDNN 0.800, "
        "compiled around SDPA efficient 3.000)"
    )
    assert choose("auto", LARGE, GPU).implementation == "triton"
    gpu("cudnn")
    assert choose("auto", LARGE, GPU, compiled=True).implementation == "triton"
    assert choose("auto", LARGE | {"qk_norm": "layer_norm"}, GPU, compiled=True).implementation == "flash"


def test_the_table_is_made_of_end_to_end_rows_of_both_passes():
    row = {
        "op": "joint_attention", "gpu": "g", "dtype": "bf16", "commit": "c", "date": "d", "provider": OURS,
        "scope": "end_to_end", "direction": "both", "p50_ms": 1.0, "round": 1,
        "shape": {"batch": 1, "image": 4096, "text": 154, "heads": 38, "head_dim": 64},
    }  # fmt: skip
    rows = [row, row | {"round": 2, "p50_ms": 1.5}, row | {"direction": "forward"}, row | {"scope": "raw"}]
    (condensed,) = measured.condense(rows)
    assert condensed["p50_ms"] == {OURS: 1.5}
    assert (condensed["image"], condensed["head_dim"], condensed["commit"]) == (4096, 64, "c")


def test_the_setting_is_strict():
    assert load("configs/tiny_cpu.yaml").kernels.attention == "auto"
    with pytest.raises(LaddError, match="kernels.attention"):
        load("configs/tiny_cpu.yaml", ["kernels.attention=sdpa"])


def make_student() -> Sd3Backbone:
    """Both kinds of block and a last one without text output."""
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=64, pooled_projection_dim=12,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return Sd3Backbone(net)


def student_results(backbone: Sd3Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)
    cond = Conditioning(torch.randn(2, 7, 24, generator=g), torch.randn(2, 12, generator=g))
    out = backbone(torch.randn(2, 4, 6, 10, generator=g), torch.tensor([0.25, 1.0]), cond)
    backbone.zero_grad()
    out.square().sum().backward()
    return out.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backward", ["own", "flash"])
def test_the_whole_student_computes_the_same(backward):
    """Within 1e-5 of each tensor's largest value, in fp32."""
    backbone = make_student()
    out, gradients = student_results(backbone)
    backbone.net.set_attn_processor(JointAttentionProcessor("reference", backward))
    fused_out, fused = student_results(backbone)
    torch.testing.assert_close(fused_out, out, rtol=0, atol=1e-5 * float(out.abs().max()))
    assert fused.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_compiled_blocks_hold_the_operator_whole():
    """No graph break, in either pass."""
    backbone = make_student()
    backbone.net.set_attn_processor(JointAttentionProcessor("reference"))
    out, gradients = student_results(backbone)
    for block in backbone.wrap_points():
        block.compile(backend="aot_eager", fullgraph=True)
    compiled_out, compiled = student_results(backbone)
    torch.testing.assert_close(compiled_out, out)
    torch.testing.assert_close(compiled, gradients)


def test_every_attention_gets_the_processor():
    net = make_student().net
    before = net.attn_processors
    set_attention(net, Attention("diffusers", "own", ""))
    assert net.attn_processors == before
    set_attention(net, Attention("triton", "flash", ""))
    assert len(net.attn_processors) == 4
    assert all(isinstance(p, JointAttentionProcessor) and p.backward == "flash" for p in net.attn_processors.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize(("backend", "operators"), [("flash", {FLASH, f"{FLASH}_backward"}), ("math", set())])
def test_a_named_backend_holds_in_both_passes(backend, operators, way, checkpointing, monkeypatch):
    """Compiled and while a block is computed again, too. The one that the CPU would not choose stands for all."""
    monkeypatch.setitem(SDPA_BACKENDS, "math", SDPBackend.MATH)
    backbone = make_student()
    plain, plain_gradients = student_results(backbone)
    set_attention(backbone.net, Attention(backend, "own", ""))
    named = Sd3Backbone(backbone.net, activation_checkpointing=checkpointing)
    if way == "compiled":
        torch._dynamo.reset()  # only so many versions of the blocks that all tests share
        for block in named.wrap_points():
            block.compile(backend="aot_eager", fullgraph=True)
    with profile() as seen:
        out, gradients = student_results(named)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(gradients, plain_gradients)
    assert {event.key for event in seen.key_averages() if "flash" in event.key} == operators


def test_a_mask_is_refused():
    attention = make_student().net.transformer_blocks[0].attn
    with pytest.raises(LaddError, match="takes no attention_mask"):
        JointAttentionProcessor()(attention, torch.zeros(1, 2, 64), attention_mask=torch.ones(1, 2))


def train(world: World, config: Config, fused: bool) -> None:
    """Run a trainer, with the operator in every block where asked for: its reference, as there is no GPU."""

    def put(net: SD3Transformer2DModel, _: Attention) -> None:
        if fused:
            net.set_attn_processor(JointAttentionProcessor("reference"))

    with patch("ladd_dist.models.sd3.family.set_attention", put):
        Trainer(config, world).run()


@pytest.mark.parametrize("engine", ["local", "fsdp2", "zero3"])
def test_every_engine_trains_through_the_operator(engine, dataset: Path, tmp_path):
    """Norm weights are read outside their own modules, which sharded engines have to have gathered."""
    short = ["train.iterations=4", "train.checkpoint_every=4", "student.activation_checkpointing=true"]
    adam = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]
    rows = []
    for name, overrides, fused in (("plain", [], False), ("fused", ENGINES[engine], True)):
        size = 2 if overrides else 1
        share = [f"train.micro_batch={8 // size}", "teacher.placement=shard" if size == 2 else "engine=local"]
        config = tiny_config(tmp_path / name, dataset, *short, *adam, *share, *overrides)
        ranks(size)(train, config, fused)
        rows.append(read_metrics(tmp_path / name))
    for plain, own in zip(*rows, strict=True):
        for key in ("d_loss", "g_loss", "student_grad_norm", "head_grad_norm"):
            assert own[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-5), key
