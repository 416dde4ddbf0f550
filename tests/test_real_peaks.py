"""The plan's memory is what real ranks hold at the worst moment of an iteration: gloo processes on the CPU."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import ROOT, TEACHER, TINY
from diffusers import SD3Transformer2DModel
from ranks import close_ranks, ranks
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ladd_dist.config import load
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.ema import Ema
from ladd_dist.methods.registry import build_method
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.dry_run.memory import DeviceMemory
from ladd_dist.planning.memory import on
from ladd_dist.planning.needs import needs
from ladd_dist.planning.onlookers import onlookers
from ladd_dist.planning.plan import largest_bucket
from ladd_dist.planning.samples import random_sample

BF16, SHARD, RECOMPUTED = "train.precision=bf16", "teacher.placement=shard", "student.activation_checkpointing=true"
TWO_PASS, TEACHER_RECOMPUTED = "method.fake_pass=two_pass", "teacher.activation_checkpointing=true"
PAIRS = ["method.loss=relativistic", TWO_PASS, "discriminator.student_time=true"]
CASES = {
    1: [
        ["engine=local"],
        ["engine=local", BF16, RECOMPUTED],
        ["engine=local", BF16, RECOMPUTED.replace("true", "selective"), TWO_PASS, "train.micro_batch=1"],
        ["engine=local", BF16, "student.float8=true"],
    ],
    2: [
        ["engine=fsdp2"],
        ["engine=fsdp2", BF16, SHARD],
        ["engine=fsdp2", *PAIRS],
        ["engine=zero3"],
        ["engine=zero3", BF16],
        ["engine=zero3", SHARD],
        ["engine=zero3", TWO_PASS, TEACHER_RECOMPUTED],
        ["engine=zero3", TWO_PASS, SHARD, RECOMPUTED],
        ["engine=zero3", "student.lora.rank=8", BF16],
    ],
    4: [["engine=fsdp2", SHARD, "train.global_batch=32"], ["engine=zero3", BF16]],
}


aten = torch.ops.aten
PRODUCTS = aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default


class Watched(TorchDispatchMode):
    """Shows a `DeviceMemory` what every operator makes.

    Products in bf16, for which a CPU without instructions for them takes ten times as long, it has computed in fp32,
    unseen: what comes out is of the same size.
    """

    def __init__(self, memory: DeviceMemory, clock: Clock) -> None:
        super().__init__()
        self._memory, self._clock = memory, clock

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it first says what is done with this rank's part
        if torch.bfloat16 in (dtypes := {a.dtype for a in args if isinstance(a, torch.Tensor)}) and func in PRODUCTS:
            assert len(dtypes) == 1
            args = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in args)
            out = func(*args, **(kwargs or {})).bfloat16()
        else:
            out = func(*args, **(kwargs or {}))
        self._memory.see(self._clock.phase, out)
        return out


def peaks(world: World, overrides: list[str]) -> dict[str, int]:
    """Most bytes by phase of a second iteration, when all state is there."""
    config, clock = load(TINY, overrides), Clock(world)
    with DeviceMemory("cpu") as memory, Watched(memory, clock):
        method = build_method(config, world, clock)
        ema = Ema(method.student, config.train.ema_decay, on_host=False)
        for index in range(2):
            memory.peaks.clear()
            sample = random_sample(config, world, method, largest_bucket(config).name, index)
            method.iteration(index, [sample] * config.accumulation(world.size))
            ema.update(index)
        return memory.peaks


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Blocks whose activations weigh a few times what their weights do, as in a run of a large one."""
    folder = tmp_path_factory.mktemp("teacher")
    SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=4, attention_head_dim=32,
        num_attention_heads=8, joint_attention_dim=64, caption_projection_dim=256, pooled_projection_dim=64,
        pos_embed_max_size=16, qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    (folder / "vae").mkdir()
    shutil.copy(ROOT / TEACHER / "vae/config.json", folder / "vae")
    return folder


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    yield
    close_ranks()


@pytest.mark.parametrize("size", CASES)
def test_a_plan_is_within_a_twentieth_of_real_ranks(teacher, size):
    common = [f"teacher.path={teacher}", "synthesis.buckets=[128x64]", f"train.global_batch={4 * size}"]
    for case in CASES[size]:
        overrides = [*common, *case]
        config = load(TINY, overrides)
        costs = Costs(config, largest_bucket(config), "cpu")
        planned = needs(config, costs, size, config.micro_batch(size), workspace=0)
        beside = on(onlookers(config, costs.networks, size), "device")  # of which these ranks have none
        alone = World(0, 1, 0, torch.device("cpu"))
        real = [peaks(alone, overrides)] if size == 1 else ranks(size)(peaks, overrides)
        for seen in real:
            assert planned.total - beside == pytest.approx(max(seen.values()), rel=0.05), f"{case} {planned} {seen}"
