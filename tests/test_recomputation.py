"""Blocks recomputed but for attention and the narrower matrix products: the same gradients, of fewer operators."""

import os
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from counting import Operators
from diffusers import SD3Transformer2DModel
from test_transformer import inputs, make
from torch import Tensor

from kernels import JOINT_ATTENTION
from ladd_dist.config import LoraConfig, Recomputation, load
from ladd_dist.engines.casting import cast_in_passes
from ladd_dist.engines.compiled import compile_blocks, is_compiled
from ladd_dist.errors import LaddError
from ladd_dist.models.recomputation import is_kept
from ladd_dist.models.sd3.attention import JointAttentionProcessor
from ladd_dist.models.sd3.transformer import Sd3Backbone

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
WAYS: dict[str, Recomputation] = {"kept": False, "selective": "selective", "recomputed": True}


def network(fused: bool = False) -> SD3Transformer2DModel:
    net = make(attention_head_dim=32, num_attention_heads=1)
    if fused:
        net.set_attn_processor(JointAttentionProcessor("reference"))
    return net


def backward(net: SD3Transformer2DModel, what: Recomputation, frozen: bool) -> tuple[list[Tensor], Counter[str]]:
    """Gradients by the latents and, unless frozen, by weights; and how often operators ran, forward and back."""
    backbone = Sd3Backbone(net.requires_grad_(not frozen), torch.float64, what)
    x, t, cond = inputs()
    by = [x.requires_grad_(), *([] if frozen else net.transformer_blocks[1].parameters())]
    with Operators() as seen:
        total = sum(feature.square().sum() for feature in backbone(x, t, cond, (0, 2)))
        gradients = torch.autograd.grad(total, by)
    return list(gradients), seen.calls


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_of_kept_activations_and_attention_runs_once(fused: bool, frozen: bool) -> None:
    net, attention = network(fused), JOINT_ATTENTION if fused else FLASH
    seen = {way: backward(net, what, frozen) for way, what in WAYS.items()}
    kept, _ = seen["kept"]
    for gradients, _ in seen.values():
        assert all(map(torch.equal, gradients, kept))
    assert {way: calls[attention] for way, (_, calls) in seen.items()} == {"kept": 3, "selective": 3, "recomputed": 6}
    products = {way: calls["aten::mm"] + calls["aten::addmm"] for way, (_, calls) in seen.items()}
    assert products["kept"] == products["selective"] < products["recomputed"]
    norms = {way: calls["aten::native_layer_norm"] for way, (_, calls) in seen.items()}
    assert norms["kept"] < norms["selective"] == norms["recomputed"]


def test_weights_that_are_cast_when_a_block_is_called_are_cast_again() -> None:
    """One process trains so: of two passes, the second is on copies of its own."""
    found = []
    for what in WAYS.values():
        backbone = Sd3Backbone(network().float(), torch.bfloat16, what)
        cast_in_passes(backbone, torch.bfloat16)
        x, t, cond = inputs()
        outs = [backbone(x.float() + shift, t.float(), cond.to(x.device, torch.float32)) for shift in (0, 1)]
        loss = sum(out.square().sum() for out in outs)
        found.append(torch.autograd.grad(loss, list(backbone.net.transformer_blocks[1].parameters())))
    for gradients in found[1:]:
        assert all(map(torch.equal, gradients, found[0]))


def test_it_is_taken_back() -> None:
    net = network()
    _, calls = backward(net, "selective", False)
    _, again = backward(net, False, False)
    assert again["aten::native_layer_norm"] < calls["aten::native_layer_norm"]


def gradients_with_adapters(what: Recomputation, compiled: bool = False) -> list[Tensor]:
    """Of a pass with them and one without, of the same blocks, by the adapters and the latents."""
    backbone = Sd3Backbone(network(), torch.float64, what)
    backbone.add_adapters(LoraConfig(rank=2))
    draw = torch.Generator().manual_seed(0)
    trained = [p for p in backbone.double().parameters() if p.requires_grad]
    for p in trained:
        p.data.normal_(0, 0.1, generator=draw)
    if compiled:
        compile_blocks(backbone.wrap_points())
        assert is_compiled(backbone.wrap_points()[0])
    x, t, cond = inputs()
    x.requires_grad_()
    both = backbone(x, t, cond), backbone(x, t, cond, adapter=False)
    gradients = torch.autograd.grad(both[0].sin().sum() + both[1].sum(), [x, *trained], allow_unused=True)
    return [gradient for gradient in gradients if gradient is not None]


def test_compiled_blocks_have_the_same_gradients() -> None:
    """With adapters, whose second products are recomputed."""
    torch._dynamo.reset()  # only so many versions of the blocks that all tests share
    with patch.dict("ladd_dist.engines.compiled._OPTIONS", backend="aot_eager"):
        compiled = gradients_with_adapters("selective", compiled=True)
    torch.testing.assert_close(compiled, gradients_with_adapters(False))


def test_layers_that_change_their_product_in_place_have_the_same_gradients() -> None:
    """DeepSpeed's, in which PyTorch does not notice it."""
    with patch.dict(os.environ, DS_ACCELERATOR="cpu"):
        from deepspeed.runtime.zero.linear import zero3_linear_wrap
    with patch("torch.nn.functional.linear", zero3_linear_wrap):
        kept, selective = map(gradients_with_adapters, (False, "selective"))
    assert all(map(torch.equal, kept, selective))


def test_operators_of_hooks_inside_of_a_block_may_run_as_often_as_they_like() -> None:
    net = network()
    kept, _ = backward(net, False, False)
    runs: list[int] = []

    def gather(*_: Any) -> None:
        runs.append(1)
        if len(runs) > 3:  # as if the weights had been there the first time
            torch.zeros(3).roll(1)

    for block in net.transformer_blocks:
        block.ff.register_forward_pre_hook(gather)
    selective, _ = backward(net, "selective", False)
    assert len(runs) == 6 and all(map(torch.equal, selective, kept))


@pytest.mark.parametrize(
    ("operator", "shapes", "kept"),
    [
        ("aten::mm", [(4096, 2432), (2432, 2432)], True),
        ("aten::addmm", [(9728,), (4096, 2432), (2432, 9728)], False),  # to the feed-forward layer's inner width
        ("aten::addmm", [(2432,), (4096, 9728), (9728, 2432)], True),  # and back
        ("aten::addmm", [(14592,), (8, 2432), (2432, 14592)], True),  # modulation: one row for each sample
        ("aten::mm", [(4096, 2432), (2432, 256)], True),  # an adapter's first product
        ("aten::mm", [(4096, 256), (256, 2432)], False),  # and its second
        ("aten::_scaled_mm", [(4096, 2432), (2432, 9728)], False),
        ("aten::bmm", [(38, 4250, 64), (38, 64, 4250)], False),  # attention's scores where no kernel has them
        ("aten::bmm", [(38, 4250, 4250), (38, 4250, 64)], True),
        ("aten::add", [(4096, 2432), (4096, 2432)], False),
        ("aten::_scaled_dot_product_cudnn_attention", [], True),
        ("aten::_scaled_dot_product_cudnn_attention_backward", [], False),
        (JOINT_ATTENTION, [], True),
        (f"{JOINT_ATTENTION}_backward", [], False),
    ],
)
def test_what_is_kept(operator: str, shapes: list[tuple[int, ...]], kept: bool) -> None:
    assert is_kept(operator, tuple(torch.empty(shape, device="meta") for shape in shapes)) is kept


@pytest.mark.parametrize(("rows", "kept"), [(1, True), (8, False)])
def test_code_for_any_number_of_rows_takes_them_to_be_many(rows: int, kept: bool) -> None:
    shapes = [(14592,), (rows, 2432), (2432, 14592)]
    assert is_kept("aten::addmm", tuple(torch.empty(s, device="meta") for s in shapes), compiled=True) is kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("selectiv", "must be false, true or selective, did you mean selective?, not 'selectiv'"),
        ("full", "must be false, true or selective, not 'full'"),
    ],
)
def test_another_word_is_refused(given: str, said: str) -> None:
    with pytest.raises(LaddError) as error:
        load("configs/sd35_large.yaml", [f"student.activation_checkpointing={given}"])
    assert str(error.value) == f"configs/sd35_large.yaml: student.activation_checkpointing: {said}"


@pytest.mark.parametrize(("given", "read"), [("false", False), ("true", True), ("selective", "selective")])
def test_the_three_words(given: str, read: Recomputation) -> None:
    assert load("configs/tiny_cpu.yaml", [f"teacher.activation_checkpointing={given}"]).teacher == load(
        "configs/tiny_cpu.yaml"
    ).teacher.model_copy(update={"activation_checkpointing": read})
