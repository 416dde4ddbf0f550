"""What an iteration takes on the device at hand, with random weights and samples: nothing need be downloaded."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.ema import Ema
from ladd_dist.methods.registry import build_method
from ladd_dist.models.weights import unread
from ladd_dist.planning.plan import largest_bucket
from ladd_dist.planning.samples import random_sample

_WARM_UP = 2
"""The first iteration compiles and allocates, and the second still does a little."""
_STD = 0.02
_PRODUCT = {"cuda": 8192, "cpu": 512}
"""Width of the square matrices whose product is the device's ceiling."""


@dataclass(frozen=True)
class Iteration:
    """Medians over some iterations of the largest bucket.

    Attributes:
        device: its name.
        torch: PyTorch's version.
        samples: of an iteration.
        seconds: of one.
        phases: seconds by phase; `planning.measured.UPDATES` are there once, all others for each micro-batch.
        peak: most bytes that tensors took, over all iterations; 0 on a CPU, where nobody counts.
        reserved: most bytes that PyTorch's allocator held.
        ceiling: FLOP/s of a large bf16 matrix product in the same process.
    """

    device: str
    torch: str
    samples: int
    seconds: float
    phases: dict[str, float]
    peak: int
    reserved: int
    ceiling: float


def measure_iteration(config: Config, world: World, rounds: int) -> Iteration:
    """Build the networks as a training does and run iterations, a few of them before time is taken.

    Raises:
        LaddError: for settings that cannot run here.
    """
    check_launch(config, world)
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    ceiling = _ceiling(world.device)  # before the memory is full
    clock = Clock(world)
    with unread(lambda length: _random(length, world.device)):
        method = build_method(config, world, clock)
    ema = Ema.of(method.student, config)
    bucket = largest_bucket(config).name
    count, kinds = config.accumulation(world.size), list[dict[str, float]]()
    samples = [random_sample(config, world, method, bucket, index) for index in range(count)]
    times = []
    for index in range(_WARM_UP + rounds):
        clock.seconds()
        begin = time.perf_counter()
        method.iteration(index, samples)
        clock.mark("average")
        ema.update(index)
        clock.mark("other")
        kinds.append({name: spent for name, spent in clock.seconds().items() if name not in ("start", "other")})
        times.append(time.perf_counter() - begin)
    ema.wait()  # or its thread would hold the networks while the next ones are built
    return Iteration(
        device_name(world.device),
        torch.__version__,
        count * config.micro_batch(world.size),
        _median(times[_WARM_UP:]),
        {name: _median([spent[name] for spent in kinds[_WARM_UP:]]) for name in kinds[-1]},
        torch.cuda.max_memory_allocated() if cuda else 0,
        torch.cuda.max_memory_reserved() if cuda else 0,
        ceiling,
    )


def device_name(device: torch.device) -> str:
    """As a row has it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _random(length: int, device: torch.device) -> Tensor:
    """On the device, where eight billion take a second. Zeros would draw less power, and so run faster."""
    return torch.randn(length, device=device) * _STD


def _ceiling(device: torch.device) -> float:
    width = _PRODUCT[device.type]
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * width**3 / _median(times)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
