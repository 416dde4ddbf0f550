"""AdamW with 8-bit moments, compiled for the GPU at hand, in chunks."""

import sys
from pathlib import Path

import pytest
import torch

from ladd_dist.config import OptimizerConfig
from ladd_dist.engines import eight_bit
from ladd_dist.engines.eight_bit import EightBitAdamW

SIZES = {"first": 4096, "odd": 256 * 37, "long": 256 * 61, "last": 256 * 20}


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_chunks_are_updated_as_torchao_does_each_tensor(monkeypatch, beta1):
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "8bit"))
    pytest.importorskip("torchao")
    from torchao.optim import AdamW8bit

    monkeypatch.setattr(eight_bit, "_CHUNK", 8192)
    torch.manual_seed(0)
    weights = {name: torch.randn(size, device="cuda") for name, size in SIZES.items()}
    alone = [torch.nn.Parameter(weight.clone()) for weight in weights.values()]
    ours = EightBitAdamW(weights, OptimizerConfig(lr=1e-2, state="8bit", betas=[beta1, 0.99]))
    theirs = AdamW8bit(alone, 1e-2, (beta1, 0.99), weight_decay=0.0)
    for _ in range(5):
        gradients = {name: torch.randn(size, device="cuda") for name, size in SIZES.items()}
        for parameter, gradient in zip(alone, gradients.values(), strict=True):
            parameter.grad = gradient.clone()
        theirs.step()
        ours.step(gradients, 1e-2, torch.tensor(True, device="cuda"))
    for weight, parameter in zip(weights.values(), alone, strict=True):
        torch.testing.assert_close(weight, parameter.detach(), rtol=0, atol=1e-3)  # of 0.05
