"""Weights on their way from the GPU at hand to an average in host memory."""

import torch

from ladd_dist.engines.ema import in_host_memory


def test_each_tensor_arrives_whole_before_its_buffer_is_used_again():
    torch.manual_seed(0)
    sizes = [(3000, 1000), (7,), (1000, 3000), (1,), (2, 3, 5), (3000, 1000), (0,)]
    there = [torch.randn(size, device="cuda") for size in sizes]
    for tensor, here in zip(there, in_host_memory(there), strict=True):
        assert not here.is_cuda and torch.equal(tensor.cpu(), here)


def test_tensors_of_the_host_are_given_as_they_are():
    here = [torch.ones(2), torch.zeros(3)]
    assert all(given is own for given, own in zip(in_host_memory(here), here, strict=True))
