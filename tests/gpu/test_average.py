"""Weights on their way from the GPU at hand to an average in host memory."""

import torch

from ladd_dist.config import OptimizerConfig
from ladd_dist.distributed.world import World
from ladd_dist.engines.ema import Ema, in_host_memory
from ladd_dist.engines.replicated import ReplicatedEngine


def test_each_tensor_arrives_whole_before_its_buffer_is_used_again():
    torch.manual_seed(0)
    sizes = [(3000, 1000), (7,), (1000, 3000), (1,), (2, 3, 5), (3000, 1000), (0,)]
    there = [torch.randn(size, device="cuda") for size in sizes]
    for tensor, here in zip(there, in_host_memory(there), strict=True):
        assert not here.is_cuda and torch.equal(tensor.cpu(), here)


def test_tensors_of_the_host_are_given_as_they_are():
    here = [torch.ones(2), torch.zeros(3)]
    assert all(given is own for given, own in zip(in_host_memory(here), here, strict=True))


def test_an_average_moves_beside_the_passes_and_before_the_next_update():
    torch.manual_seed(0)
    world = World(0, 1, 0, torch.device("cuda"))
    net = ReplicatedEngine(torch.nn.Linear(3000, 3000).cuda(), OptimizerConfig(lr=0.1), torch.float32, world)
    ema = Ema(net, 0.5, on_host=True)
    expected = [shard.local.cpu() for shard in net.shards().values()]
    for _ in range(4):
        for _ in range(20):  # more than is done when the average begins to move
            net.backward(net(torch.randn(4000, 3000, device="cuda")).square().mean())
        net.step(lr=0.1)
        ema.update(100)
        expected = [a.lerp(shard.local.cpu(), 0.5) for a, shard in zip(expected, net.shards().values(), strict=True)]
    for shard, theirs in zip(ema.shards().values(), expected, strict=True):
        assert torch.equal(shard.local, theirs)
