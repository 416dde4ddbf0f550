import pytest
import torch
from diffusers import SD3Transformer2DModel

from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.errors import LaddError
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.sd3.transformer import Sd3Backbone, load_transformer, token_grid, truncate
from ladd_dist.planning.counting import Counter

SIZES = {"joint": {}, "dual": {"dual_attention_layers": (0, 1)}, "patch1": {"patch_size": 1}}


def make(**changes):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 32,
        "pooled_projection_dim": 12, "out_channels": 4, "pos_embed_max_size": 16, "qk_norm": "rms_norm",
    }  # fmt: skip
    return SD3Transformer2DModel(**(settings | changes)).double()


def inputs(batch=2, height=6, width=10):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    cond = Conditioning(draw(batch, 7, 24), draw(batch, 12))
    return draw(batch, 4, height, width), torch.tensor([0.25, 1.0], dtype=torch.float64)[:batch], cond


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
def test_velocity_is_diffusers_own(changes):
    net = make(**changes)
    x, t, cond = inputs()
    expected = net(x, cond.context, cond.pooled, 1000 * t.float(), return_dict=False)[0]
    got = Sd3Backbone(net, torch.float64)(x, t, cond)
    torch.testing.assert_close(got, expected.float())


def test_features_are_the_image_tokens_after_each_block():
    net = make()
    seen = []
    for block in net.transformer_blocks:
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[1]))
    x, t, cond = inputs()
    features = Sd3Backbone(net, torch.float64)(x, t, cond, (0, 2))
    assert len(seen) == 3
    torch.testing.assert_close(features[0], seen[0])
    torch.testing.assert_close(features[1], seen[2])


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
def test_blocks_hand_on_tokens_row_by_row_forward_and_backward(changes):
    net = make(**changes)
    x, t, cond = inputs()
    features = Sd3Backbone(net, torch.float64)(x.requires_grad_(), t, cond, (0, 1, 2))
    gradients = torch.autograd.grad(features[-1].sin().sum(), features[:-1])
    assert all(tokens.is_contiguous() for tokens in (*features, *gradients))


def test_a_block_takes_fewer_operators_than_diffusers():
    """Two streams with two modulations and two gates each, in two of three blocks."""
    net = make()
    x, t, cond = inputs()
    with torch.no_grad(), Counter() as theirs:
        net(x, cond.context, cond.pooled, 1000 * t, return_dict=False)
    with torch.no_grad(), Counter() as ours:
        Sd3Backbone(net, torch.float64)(x, t, cond)
    assert ours.work.launches <= theirs.work.launches - 2 * 8


def test_a_feature_pass_ends_after_the_last_tap():
    net = make()
    runs = []
    for block in net.transformer_blocks:
        block.register_forward_hook(lambda _m, _a, _o: runs.append(1))
    Sd3Backbone(net, torch.float64)(*inputs(), (0, 1))
    assert len(runs) == 2


def test_a_network_truncated_after_the_last_tap_gives_the_same_features():
    x, t, cond = inputs()
    whole, cut = make(), truncate(make(), 1)
    expected, got = (Sd3Backbone(net, torch.float64)(x, t, cond, (0, 1)) for net in (whole, cut))
    assert all(map(torch.equal, expected, got))
    unused = whole.transformer_blocks[2], whole.norm_out, whole.proj_out
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in cut.parameters()) == sum(
        p.numel() for module in unused for p in module.parameters()
    )


@pytest.mark.parametrize("taps", [None, (0, 2)])
def test_activation_checkpointing_changes_no_gradient(taps):
    net = make()
    gradients = []
    for checkpointing in (False, True):
        x, t, cond = inputs()
        x.requires_grad_()
        out = Sd3Backbone(net, torch.float64, checkpointing)(x, t, cond, taps)
        total = out.sum() if taps is None else sum(f.square().sum() for f in out)
        weight = net.transformer_blocks[0].attn.to_q.weight
        gradients.append(torch.autograd.grad(total, [x, weight]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_times_keep_their_digits_in_bf16():
    """1000 t rounded to bf16 would not tell 0.7500 from 0.7510."""
    net = make().to(torch.bfloat16)
    x, _, cond = inputs(batch=1)
    seen = []
    net.time_text_embed.time_proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    Sd3Backbone(net, torch.bfloat16)(x.float(), torch.tensor([0.751]), cond.to(x.device, torch.float32))
    assert seen[0].dtype == torch.float32
    assert seen[0].item() == pytest.approx(751)


def test_grid_errors_name_the_reason():
    config = make().config
    assert token_grid(config, 6, 10) == (3, 5)
    with pytest.raises(LaddError, match="patches"):
        token_grid(config, 7, 10)
    with pytest.raises(LaddError, match="position table"):
        token_grid(config, 64, 10)


def test_fingerprint_tells_weights_apart(tmp_path):
    net = make()
    net.save_pretrained(tmp_path / "a" / "transformer")
    net.save_pretrained(tmp_path / "b" / "transformer")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    net.transformer_blocks[1].attn.to_k.weight.data[3, 4] += 1e-6
    net.save_pretrained(tmp_path / "b" / "transformer")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_a_pickled_checkpoint_is_refused(tmp_path):
    make().save_pretrained(tmp_path / "transformer", safe_serialization=False)
    with pytest.raises(LaddError, match="has no diffusion_pytorch_model.safetensors: weights must be safetensors"):
        load_transformer(tmp_path, torch.float32)
