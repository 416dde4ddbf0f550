"""AdamW on the GPU at hand: without first moments, and with 8-bit ones, compiled, in chunks."""

import sys
from pathlib import Path

import pytest
import torch

from ladd_dist.config import OptimizerConfig
from ladd_dist.engines import eight_bit
from ladd_dist.engines.eight_bit import EightBitAdamW
from ladd_dist.engines.optimizer import FusedAdamW

SIZES = {"first": 4096, "odd": 256 * 37, "small": 5, "long": 256 * 61, "last": 256 * 20}


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.randn(size, device="cuda") for name, size in SIZES.items()}


def test_gradients_serve_as_first_moments():
    torch.manual_seed(0)
    weights = tensors()
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights.values()]
    ours = FusedAdamW(weights, OptimizerConfig(lr=1e-2, betas=[0.0, 0.99]))
    pytorchs = torch.optim.AdamW(theirs, 1e-2, (0.0, 0.99), weight_decay=0.0, fused=True)
    for finite in (True, True, False, True):
        gradients = tensors()
        for parameter, gradient in zip(theirs, gradients.values(), strict=True):
            parameter.grad = gradient * 0.5
        ours.step(gradients, 1e-2, torch.tensor(0.5, device="cuda"), torch.tensor(finite, device="cuda"))
        if finite:
            pytorchs.step()
    assert ours.updates == 3 and not ours.moment("exp_avg")
    for weight, parameter in zip(weights.values(), theirs, strict=True):
        torch.testing.assert_close(weight, parameter.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_chunks_are_updated_as_torchao_does_each_tensor(monkeypatch, beta1):
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "8bit"))
    pytest.importorskip("torchao")
    from torchao.optim import AdamW8bit

    monkeypatch.setattr(eight_bit, "_CHUNK", 8192)
    torch.manual_seed(0)
    weights = {name: weight for name, weight in tensors().items() if name != "small"}
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights.values()]
    ours = EightBitAdamW(weights, OptimizerConfig(lr=1e-2, state="8bit", betas=[beta1, 0.99]))
    torchaos = AdamW8bit(theirs, 1e-2, (beta1, 0.99), weight_decay=0.0)
    for _ in range(5):
        gradients = tensors()
        for parameter, name in zip(theirs, weights, strict=True):
            parameter.grad = gradients[name] * 0.5
        torchaos.step()
        ours.step(gradients, 1e-2, torch.tensor(0.5, device="cuda"), torch.tensor(True, device="cuda"))
    for weight, parameter in zip(weights.values(), theirs, strict=True):
        torch.testing.assert_close(weight, parameter.detach(), rtol=0, atol=1e-3)  # of 0.05
