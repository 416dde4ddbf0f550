"""A start and an iteration on fake ranks, by the code that trains, and what was counted on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.ema import Ema
from ladd_dist.methods.registry import build_method, method_of
from ladd_dist.models.weights import unread
from ladd_dist.planning.dry_run.device import FakeDevice, Wait, on_fake_device
from ladd_dist.planning.dry_run.eight_bit import codes_at_once
from ladd_dist.planning.dry_run.zero3 import agreeing_ranks
from ladd_dist.planning.memory import StateBytes, expected_state
from ladd_dist.planning.samples import random_sample
from ladd_dist.planning.traffic import Traffic


@dataclass(frozen=True)
class DryRun:
    """What a dry run of rank 0 has counted.

    Attributes:
        parameters: of each network, by name.
        state: what the memory formula says of this rank.
        resident: bytes on the device once the networks are built: all of the state but the gradients.
        peaks: the most bytes on the device, by phase of the iteration.
        launches: operators, compiled kernels and libraries' functions that programs call, by phase.
        kernels: of compiled programs, which are one for each direction of a variant; empty where nothing is compiled.
        moved: bytes that those read and write, by phase.
        traffic: collectives of the iterations, by kind.
        waits: where the host waits for the device within them.
        micro_batches: how many were run in an iteration.
        accumulation: how many there are.
    """

    parameters: Mapping[str, int]
    state: StateBytes
    resident: int
    peaks: Mapping[str, int]
    launches: Mapping[str, int]
    kernels: Mapping[str, int]
    moved: Mapping[str, int]
    traffic: Mapping[str, Traffic]
    waits: Sequence[Wait]
    micro_batches: int
    accumulation: int


def dry_run(config: Config, size: int, buckets: Sequence[str], micro_batches: int) -> DryRun:
    """Start ``size`` ranks and run one iteration in each bucket, as rank 0 of them, in this process alone.

    The process has a GPU in name only, see `cuda.pretend`; teacher and student need not be there but for their
    configs. What is to be compiled is compiled for that GPU.

    Args:
        micro_batches: of an iteration at most; its others are left out.

    Raises:
        LaddError: for what would have failed on a GPU, as far as this project says it itself.
        RuntimeError: as torch raises it, such as for tensors on different devices.
    """
    accumulation = config.accumulation(size)
    with ranks(config, size) as world:
        check_launch(config, world)
        clock = Clock(world)
        compiles = True in (config.student.compile, config.teacher.compile)  # `auto` compiles on a CPU alone
        with unread(), _codes(config, compiles), on_fake_device(lambda: clock.phase, compiles) as device:
            method = build_method(config, world, clock)
            with patch("ladd_dist.engines.ema.ThreadPoolExecutor", partial(_Aside, device)):
                ema = Ema.of(method.student, config)
            resident = device.memory.live

            def iterate(index: int, bucket: str) -> None:
                samples = [random_sample(config, world, method, bucket, index)] * min(micro_batches, accumulation)
                method.iteration(index, samples)
                ema.update(index)

            if config.engine == "zero3":  # learns in its first iteration which blocks to keep from pass to pass
                iterate(0, buckets[0])
            device.memory.peaks.clear()
            device.launches.clear()
            device.moved.clear()
            device.traffic.seen.clear()
            device.waits.clear()  # a start may wait
            for index, bucket in enumerate(buckets):
                iterate(index, bucket)
        networks = method_of(config).networks(config)
        modules = {**networks.trained, **networks.frozen}
        return DryRun(
            {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
            expected_state(config, size),
            resident,
            dict(device.memory.peaks),
            dict(device.launches),
            dict(device.programs.kernels),
            dict(device.moved),
            dict(device.traffic.seen),
            list(device.waits),
            min(micro_batches, accumulation),
            accumulation,
        )


class _Aside:
    """In the place of a pool of threads, for which the GPU would not be there: does at once what it is given."""

    def __init__(self, device: FakeDevice, *_: object, thread_name_prefix: str, **__: object) -> None:
        self._device, self._name = device, thread_name_prefix

    def submit(self, run: Callable[..., None], *given: object) -> "Future[None]":
        """Do it."""
        with self._device.aside(self._name):
            run(*given)
        done = Future[None]()
        done.set_result(None)
        return done


def _codes(config: Config, compiles: bool) -> AbstractContextManager[None]:
    """How torchao's update makes codes, if it has any to make: compiled with the rest, or at once."""
    optimizers = config.student_optimizer, config.head_optimizer
    eight_bit = any(optimizer is not None and optimizer.state == "8bit" for optimizer in optimizers)
    return codes_at_once() if eight_bit and not compiles else nullcontext()


@contextmanager
def ranks(config: Config, size: int) -> Iterator[World]:
    """Rank 0 among others that are not there: their collectives change nothing."""
    world = World(0, size, 0, torch.device("cuda", 0))
    if size == 1 and config.engine == "local":
        yield world
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore  # also registers its backend

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        with agreeing_ranks() if config.engine == "zero3" else nullcontext():
            yield world
    finally:
        dist.destroy_process_group()
