"""adaLN's elementwise operations on the CPU: PyTorch's contract for them, and bad input."""

import pytest
import torch
from torch.library import opcheck

import kernels
from kernels.errors import KernelError, KernelUnavailable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_registered_operations_keep_pytorchs_contract(dtype):
    x, y = torch.randn(2, 2, 5, 24, dtype=dtype).unbind()
    scale, shift = torch.randn(2, 2, 24, dtype=dtype).unbind()
    inputs = [t.clone().requires_grad_() for t in (x, scale, shift, y)]
    kernels.modulated_layer_norm(x, scale, shift)  # registers them
    opcheck(torch.ops.ladd_kernels.modulated_layer_norm, (*inputs[:3], 1e-6, "reference"))
    opcheck(torch.ops.ladd_kernels.modulated_layer_norm_backward, (y, x, scale, 1e-6, "reference"))
    opcheck(torch.ops.ladd_kernels.gated_residual, (inputs[0], inputs[1], inputs[3], "reference"))
    opcheck(torch.ops.ladd_kernels.gated_residual_backward, (x, scale, y, "reference"))


X, S = torch.zeros(2, 5, 24), torch.zeros(2, 24)
BAD = {
    "dimensions": ((torch.zeros(5, 24), S, S), r"x has shape \(5, 24\): pass tokens"),
    "empty": ((torch.zeros(2, 0, 24), S, S), "none of them 0"),
    "dtype": ((X.double(), S, S), "x is torch.float64: cast it"),
    "wide": ((torch.zeros(1, 1, 9000), S, S), "x has 9000 channels, more than 8192"),
    "shape": ((X, S[:1], S), r"scale has shape \(1, 24\): x wants \(2, 24\)"),
    "mixed": ((X, S, S.half()), r"shift is torch.float16 on cpu, x torch.float32 on cpu: call .to\(x\)"),
    "device": ((X, torch.zeros(2, 24, device="meta"), S), "scale is torch.float32 on meta"),
    "strides": ((X, torch.zeros(24, 2).mT, S), r"scale is not contiguous.*call .contiguous\(\)"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_names_the_argument_and_the_remedy(case):
    arguments, message = BAD[case]
    with pytest.raises(KernelError, match=message):
        kernels.modulated_layer_norm(*arguments)


def test_bad_residuals_are_refused():
    with pytest.raises(KernelError, match=r"y has shape \(2, 24\): x wants \(2, 5, 24\)"):
        kernels.gated_residual(X, S, S)


def test_second_derivatives_and_triton_on_a_cpu_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernels.modulated_layer_norm(x, S, S).sum(), x, create_graph=True)
    with pytest.raises(KernelError, match="cannot be differentiated again"):
        gradient.square().sum().backward()
    with pytest.raises(KernelUnavailable, match="set it to auto or reference"):
        kernels.gated_residual(X, S, X, implementation="triton")
