"""A whole student through the interpreted kernels: three blocks, one of them dual, and a last one without text."""

import torch
from diffusers import SD3Transformer2DModel

from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.models.sd3.attention import Attention, set_attention
from ladd_dist.models.sd3.transformer import Sd3Backbone


def results(backbone):
    g = torch.Generator().manual_seed(1)
    cond = Conditioning(torch.randn(1, 7, 24, generator=g), torch.randn(1, 12, generator=g))
    out = backbone(torch.randn(1, 4, 6, 10, generator=g), torch.tensor([0.5]), cond)
    backbone.zero_grad()
    out.square().sum().backward()
    return {"out": out.detach()} | {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def test_the_whole_student_computes_the_same():
    """Within 1e-5 of each tensor's largest value, in fp32: output and every parameter's gradient."""
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=64, pooled_projection_dim=12,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    backbone = Sd3Backbone(net, activation_checkpointing=True)
    expected = results(backbone)
    set_attention(net, Attention("triton", "own", "this test's choice"))
    got = results(backbone)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()), msg=name)
