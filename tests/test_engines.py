"""One contract, every engine: a small network of awkward shapes against plain PyTorch on one process."""

import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from adapters import ADAPTERS, AdaptedNet, first_values, inputs, source
from checkpoints import run_state
from conftest import ALONE, TINY
from ranks import ENGINES, ranks
from torch import Tensor, nn

from ladd_dist.checkpoints.reader import network_shards, open_newest
from ladd_dist.checkpoints.writer import CheckpointWriter
from ladd_dist.config import Config, load
from ladd_dist.distributed.world import World
from ladd_dist.engines import registry, zero3
from ladd_dist.engines.base import STATE_KINDS, Engine, fill
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.build import build_engine, check_launch, compute_dtype, place_frozen
from ladd_dist.engines.ema import Ema
from ladd_dist.engines.entry import EngineEntry
from ladd_dist.engines.ranges import Range
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.engines.settings import check_settings
from ladd_dist.errors import LaddError
from ladd_dist.methods.finite import nan_unless_finite
from ladd_dist.planning.memory import measured_trained, trained_state
from ladd_dist.planning.traffic import TrafficCounter

SHARDED = [name for name in ENGINES if name != "local"]
RANKS = {"local": 1, "hsdp": 4} | {name: 2 for name in SHARDED if name != "hsdp"}
"""hsdp as two copies of two shards."""
SHARD = "teacher.placement=shard"
ADAPTED = ["local", "fsdp2", "zero3"]
LR, CLIP = 1e-2, 0.05


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.tanh(self.there(x)))


class Toy(nn.Module):
    """Rows of 1, 3, 5 and 6, so that some ranks hold less than others or nothing, and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.first = nn.Linear(3, 6, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.gain = nn.Parameter(torch.empty(1, 6))
        self.last = nn.Linear(6, 3)
        self.register_buffer("shift", torch.empty(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.dtype))
        for block in self.blocks:
            x = block(x)
        return (self.last(x * self.gain.to(x.dtype)) + self.shift.to(x.dtype)).float()

    def wrap_points(self) -> list[nn.Module]:
        return list(self.blocks)


@dataclass(frozen=True)
class Given:
    """Weights from memory."""

    tensors: dict[str, Tensor]

    def read(self, name: str, offset: int, length: int) -> Tensor:
        return self.tensors[name].flatten()[offset : offset + length]


def weights(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=draw) * 0.5 for name, t in Toy().state_dict().items()}


def settings(engine: str, *overrides: str) -> Config:
    optimizer = [
        f"student_optimizer.lr={LR}",
        "student_optimizer.betas=[0.5,0.9]",
        f"student_optimizer.clip_norm={CLIP}",
    ]
    batch = ["train.global_batch=8", "train.precision=fp32", "method.fake_pass=two_pass"]
    return load(TINY, [*optimizer, *batch, *ENGINES[engine], *overrides])


def build(world: World, config: Config) -> Engine:
    join(config)
    make = partial(Toy, compute_dtype(config))
    return build_engine(config, Blueprint(make, Given(weights()), compute_dtype(config)), world)


def join(config: Config) -> None:
    """Give a rank that is alone its process group."""
    if config.engine != "local" and not dist.is_initialized():  # one rank alone
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def run(size: int, engine: str, function: Any, *args: Any) -> list[Any]:
    """Call a function on ranks; the local engine needs none."""
    return [function(ALONE, *args)] if engine == "local" else ranks(size)(function, *args)


# What a rank does and sees

Fault = Literal["nan", "inf", "loss"]


@dataclass(frozen=True)
class Seen:
    """One rank's view behind a step: the norm that it returned, updates, and ``(shape, offset, values)`` of state."""

    norm: float
    updates: int
    state: dict[str, dict[str, tuple[torch.Size, int, Tensor]]]
    owner: bool


def look(engine: Engine, norm: float = 0.0) -> Seen:
    state = {
        kind: {name: (s.shape, s.offset, s.local.detach().clone()) for name, s in engine.shards(kind).items()}
        for kind in STATE_KINDS
    }
    return Seen(norm, engine.updates, state, engine.owner)


def batch(step: int, rank: int, micro: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1000 * step + 10 * rank + micro))


def loss_of(output: Tensor) -> Tensor:
    return (output - 1).square().mean()


def play(world: World, config: Config, steps: list[Fault | None]) -> list[Seen]:
    """Train a step per entry, with the last rank's first micro-batch spoilt where it says so."""
    engine = build(world, config)
    seen = [look(engine)]
    for number, spoilt in enumerate(steps):
        count = config.accumulation(world.size)
        for micro in range(count):
            loss = loss_of(engine(batch(number, world.rank, micro))) / count
            if world.rank == world.size - 1 and micro == 0:
                loss = spoil(loss, spoilt)
            engine.backward(loss, last=micro + 1 == count)
        seen.append(look(engine, float(engine.step(config.student_optimizer.lr))))
    return seen


def spoil(loss: Tensor, how: Fault | None) -> Tensor:
    if how == "loss":  # its own gradient stays finite
        return (loss + math.inf) * nan_unless_finite(loss + math.inf)
    return loss if how is None else loss * float(how)


# What plain PyTorch makes of the same


def expected(config: Config, size: int, steps: list[Fault | None]) -> tuple[list[float], dict[str, Tensor]]:
    """Norms before clipping, and the weights at the end; spoilt steps are left out. All in the compute precision."""
    dtype, optimizer_config = compute_dtype(config), config.student_optimizer
    toy = Toy(dtype).to(dtype)
    toy.load_state_dict(weights())
    optimizer = torch.optim.AdamW(
        toy.parameters(),
        lr=optimizer_config.lr,
        betas=tuple(optimizer_config.betas),  # type: ignore[arg-type]
        eps=optimizer_config.eps,
        weight_decay=optimizer_config.weight_decay,
    )
    norms = []
    for number in (n for n, spoilt in enumerate(steps) if spoilt is None):
        parts = [(rank, micro) for rank in range(size) for micro in range(config.accumulation(size))]
        optimizer.zero_grad()
        torch.stack([loss_of(toy(batch(number, *part))) for part in parts]).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(toy.parameters(), optimizer_config.clip_norm)))
        optimizer.step()
    return norms, {name: p.detach() for name, p in toy.named_parameters()}


def whole(views: list[Seen], kind: str) -> dict[str, Tensor]:
    """Put the owners' ranges together; they must tile every tensor without gap or overlap."""
    result = {}
    for name, (shape, _, _) in views[0].state[kind].items():
        ranges = sorted(
            (view.state[kind][name][1:] for view in views if view.owner), key=lambda r: (r[0], r[1].numel())
        )
        position = 0
        for offset, values in ranges:
            assert offset == position, (kind, name)
            position += values.numel()
        assert position == shape.numel(), (kind, name)
        result[name] = torch.cat([values for _, values in ranges]).view(shape)
    return result


# The contract


SIZES = [("local", 1), ("hsdp", 2), ("hsdp", 4)]
SIZES += [(engine, size) for engine in SHARDED if engine != "hsdp" for size in (1, 2, 3, 4)]


@pytest.mark.parametrize(("engine", "size"), SIZES)
def test_shards_tile_the_weights_and_moments(engine: str, size: int) -> None:
    seen = run(size, engine, play, settings(engine, "train.global_batch=12"), [])
    views = [view for (view,) in seen]
    given = weights()
    for kind in STATE_KINDS:
        state = whole(views, kind)
        assert set(state) == {name for name, _ in Toy().named_parameters()}
        for name, tensor in state.items():
            torch.testing.assert_close(
                tensor, given[name] if kind == "param" else torch.zeros_like(tensor), rtol=0, atol=0
            )


def test_copies_of_a_shard_are_not_owners() -> None:
    views = [view for (view,) in run(4, "hsdp", play, settings("hsdp"), [])]
    assert [view.owner for view in views] == [True, True, False, False]
    for kind in STATE_KINDS:
        assert same(views[0].state[kind], views[2].state[kind]) and same(views[1].state[kind], views[3].state[kind])


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    difference = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return math.sqrt(difference / sum(float(tensor.square().sum()) for tensor in theirs.values()))


def same(one: dict, other: dict) -> bool:
    """Bit for bit; a NaN is equal to itself."""
    return all(
        ours[:2] == theirs[:2] and torch.equal(ours[2].view(torch.int32), theirs[2].view(torch.int32))
        for ours, theirs in zip(one.values(), other.values(), strict=True)
    )


def replace_weights(world: World, config: Config, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The output before and after, without and with a graph."""
    engine, x = build(world, config), batch(0, 0, 0)
    with torch.no_grad():
        outputs = [engine(x)]
        fill(engine.shards(), Given(tensors))
        engine.publish()
        outputs.append(engine(x))
    outputs.append(engine(x))
    return [output.detach() for output in outputs]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_written_through_shards_are_the_ones_that_compute(engine: str, precision: str) -> None:
    new = weights(1) | {"shift": weights()["shift"]}
    config = settings(engine, f"train.precision={precision}")
    dtype = compute_dtype(config)
    for outputs in run(RANKS[engine], engine, replace_weights, config, new):
        for output, tensors in zip(outputs, (weights(), new, new), strict=True):
            toy = Toy(dtype).requires_grad_(False).to(dtype)
            toy.load_state_dict(tensors)
            torch.testing.assert_close(output, toy(batch(0, 0, 0)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_steps_clip_to_the_whole_gradients_norm_and_return_it(engine: str, micro_batches: int) -> None:
    size, steps = RANKS[engine], [None] * 3
    config = settings(engine, f"train.micro_batch={8 // size // micro_batches}")
    seen = run(size, engine, play, config, steps)
    norms, tensors = expected(config, size, steps)
    assert min(norms) > 2 * CLIP
    for view in seen:
        assert [step.norm for step in view[1:]] == pytest.approx(norms, rel=1e-6)
        assert [step.updates for step in view] == [0, 1, 2, 3]
    result = whole([view[-1] for view in seen], "param")
    for name, tensor in tensors.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_first_moments_steps_are_pytorchs(engine: str) -> None:
    """Which keeps them: with ``betas[0]`` of 0 they are the gradients, and this repository's engines keep none."""
    size, steps = RANKS[engine], [None, "nan", None, None]
    config = settings(engine, "student_optimizer.betas=[0.0,0.9]", "student_optimizer.weight_decay=0.1")
    seen = run(size, engine, play, config, steps)
    assert all(set(view.state["exp_avg_sq"]) == set(weights()) - {"shift"} for views in seen for view in views)
    assert not any(view.state["exp_avg"] for views in seen for view in views)
    assert [view.updates for view in seen[0]] == [0, 1, 1, 2, 3]
    result = whole([view[-1] for view in seen], "param")
    for name, tensor in expected(config, size, steps)[1].items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


SPOILT: list[Fault] = ["nan", "inf", "loss"]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_spoilt_on_one_rank_changes_nothing_on_any(engine: str, how: Fault, micro_batches: int) -> None:
    size, steps = RANKS[engine], [None, how, None]
    config = settings(engine, f"train.micro_batch={8 // size // micro_batches}")
    seen = run(size, engine, play, config, steps)
    for _, before, spoilt, after in seen:
        assert math.isfinite(before.norm) and not math.isfinite(spoilt.norm) and math.isfinite(after.norm)
        assert (before.updates, spoilt.updates, after.updates) == (1, 1, 2)
        assert all(same(spoilt.state[kind], before.state[kind]) for kind in STATE_KINDS)
    norms, tensors = expected(config, size, steps)
    assert [step.norm for step in seen[0] if 0 < step.norm < math.inf] == pytest.approx(norms, rel=1e-6)
    result = whole([view[-1] for view in seen], "param")
    for name, tensor in tensors.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_move_at_a_rate_that_bf16_weights_would_not_notice(engine: str) -> None:
    """Twenty steps of 1e-6 are 2e-5, where bf16 numbers near .5 lie 2e-3 apart."""
    steps = [None] * 20
    config = settings(engine, "train.precision=bf16", "student_optimizer.lr=1e-6")
    size = RANKS[engine]
    seen = run(size, engine, play, config, steps)
    result = whole([view[-1] for view in seen], "param")
    exact = expected(settings(engine, "student_optimizer.lr=1e-6"), size, steps)[1]
    rounded = expected(config, size, steps)[1]
    moved = {name: tensor - weights()[name] for name, tensor in result.items()}
    ways = {name: tensor - weights()[name] for name, tensor in exact.items()}
    assert relative(moved, ways) < 0.1
    large = torch.cat([(weights()[name].abs() > 0.01).flatten() for name in moved])
    assert not torch.cat([(rounded[n] != weights()[n].bfloat16()).flatten() for n in moved])[large].any()


def norm_is_on(world: World, config: Config) -> str:
    """The device of a norm, on a rank whose own is not the CPU by name."""
    engine: Any = build(world, config)
    engine.backward(loss_of(engine(batch(0, world.rank, 0))))
    engine._world = replace(world, device=torch.device("meta"))
    return str(engine.step(LR).device)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name.startswith("zero3")])
def test_deepspeeds_norm_comes_to_the_ranks_device(engine: str) -> None:
    """Which has it in host memory where the optimizer is, and metrics are averaged on the device."""
    assert ranks(2)(norm_is_on, settings(engine)) == ["meta", "meta"]


def averaged(world: World, config: Config) -> int:
    """All-reduces of the gradients of an iteration."""
    engine, counter, count = build(world, config), TrafficCounter(), config.accumulation(world.size)
    with counter:
        for micro in range(count):
            engine.backward(loss_of(engine(batch(0, world.rank, micro))), last=micro + 1 == count)
    return counter.seen["all_reduce"].calls


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_replicas_average_once_per_update(micro_batches: int) -> None:
    config = settings("hsdp", f"train.micro_batch={2 // micro_batches}")
    assert ranks(4)(averaged, config) == [len(Toy().blocks) + 1] * 4


# Devices


def test_deepspeed_is_told_the_gpu_that_a_rank_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a task of Slurm sees its own alone, the first one, whatever its rank on the node."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    zero3._deepspeed(replace(ALONE, local_rank=3, device=torch.device("cuda", 0)))
    assert os.environ["LOCAL_RANK"] == "0"


# Prefetch

PREFETCH = ["fsdp2.forward_prefetch=2", "fsdp2.backward_prefetch=2"]


def prefetched(world: World, config: Config) -> list[str]:
    """What FSDP2 gathers ahead in one step, in this order, by the names that it gives its own events."""
    engine = build(world, config)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        engine.backward(loss_of(engine(batch(0, world.rank, 0))))
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    return [event.name.removeprefix("FSDP::") for event in events if "_prefetch for" in event.name]


@pytest.mark.parametrize(
    ("ahead", "forward", "backward"), [(0, "", "210"), (1, "12", "210"), (2, "122", "2100")], ids=["0", "1", "2"]
)
def test_as_many_blocks_are_gathered_ahead_as_the_setting_says(ahead: int, forward: str, backward: str) -> None:
    """By itself FSDP2 gathers none ahead in this way in the forward pass, and one in the backward pass."""
    config = settings("fsdp2", f"fsdp2.forward_prefetch={ahead}", f"fsdp2.backward_prefetch={ahead}")
    expected = [("forward", block) for block in forward] + [("backward", block) for block in backward]
    for events in ranks(2)(prefetched, config):
        assert events == [f"{way}_prefetch for blocks.{block}" for way, block in expected]


def test_prefetching_changes_no_bit() -> None:
    plain, ahead = (ranks(2)(play, settings("fsdp2", *choice), [None] * 3) for choice in ([], PREFETCH))
    for ours, theirs in zip(ahead, plain, strict=True):
        assert ours[-1].norm == theirs[-1].norm
        assert all(same(ours[-1].state[kind], theirs[-1].state[kind]) for kind in STATE_KINDS)


def replaced_after_a_short_pass(world: World, config: Config) -> Tensor:
    """The output with new weights, written after a pass that ended with the first block."""
    engine, x = build(world, config), batch(0, 0, 0)
    with torch.no_grad():
        engine(x)
        engine.module.blocks[0](torch.zeros(1, 6))
        fill(engine.shards(), Given(weights(1)))
        engine.publish()
        return engine(x)


def test_what_was_gathered_ahead_of_a_pass_that_ended_is_not_used() -> None:
    plain, ahead = (ranks(2)(replaced_after_a_short_pass, settings("fsdp2", *more)) for more in ([], PREFETCH))
    assert all(torch.equal(output, plain[0]) for output in [*plain, *ahead])


# Registration


def toy(world: World, blueprint: Blueprint, built: list[str]) -> Engine:
    built.append("trained")
    return ReplicatedEngine(blueprint.whole(world.device), load(TINY).student_optimizer, blueprint.dtype, world)


def test_whoever_adds_an_engine_registers_it_and_touches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", registry.engines())
    config, built = settings("local", "engine=toy", SHARD), list[str]()
    blueprint = Blueprint(Toy, Given(weights()), torch.float32)
    for ask in (check_settings, lambda c: check_launch(c, ALONE), lambda c: build_engine(c, blueprint, ALONE),
                lambda c: place_frozen(c, blueprint, ALONE), lambda c: trained_state(c, Toy(), 1)):  # fmt: skip
        with pytest.raises(LaddError, match="engine=toy is not known: set engine to local, fsdp2, zero3$"):
            ask(config)

    def check(config: Config) -> None:
        if config.student.compile is True:
            raise LaddError("not compiled")

    entry = EngineEntry(
        build=lambda config, blueprint, world: toy(world, blueprint, built),
        place_frozen=lambda config, blueprint, world: built.append("frozen") or blueprint.whole(world.device),
        launcher="python",
        layout=lambda config, size, rank: lambda shape: Range(0, 1, 2, 3),
        check=check,
    )
    registry.register("toy", entry)
    with pytest.raises(ValueError, match="an engine toy is registered already"):
        registry.register("toy", entry)
    check_launch(config, ALONE)
    with pytest.raises(LaddError, match="not compiled"):
        check_launch(settings("local", "engine=toy", "student.compile=true"), ALONE)
    with pytest.raises(LaddError, match=r"fsdp2\.replicas is only read by engine=fsdp2, but engine=toy"):
        check_settings(settings("local", "engine=toy", "fsdp2.replicas=2"))
    assert set(build_engine(config, blueprint, ALONE).shards()) == {name for name, _ in Toy().named_parameters()}
    place_frozen(config, blueprint, ALONE)
    assert built == ["trained", "frozen"]
    tensors = len(list(Toy().parameters()))
    assert trained_state(config, Toy(), 1)["device", "masters"] == 2 * 4 * tensors


# Adapters on a frozen network


def adapted(world: World, config: Config, recompute: bool = False) -> Engine:
    join(config)
    dtype = compute_dtype(config)
    return build_engine(config, Blueprint(partial(AdaptedNet, dtype, recompute), source(), dtype), world)


def passes(engine: Engine, rank: int, step: int) -> None:
    """Forward and backward, between which the network runs as if it had no adapters, like a reference."""
    x, t, cond = inputs(step, rank)
    output = engine(x, t, cond, adapter=True)
    with torch.no_grad():
        reference = engine(x, t, cond, adapter=False)
    engine.backward((output - reference - 1).square().mean())


def learn(engine: Engine, config: Config, rank: int, steps: range) -> None:
    for step in steps:
        passes(engine, rank, step)
        engine.step(config.student_optimizer.lr)


def adapted_state(world: World, config: Config) -> tuple[dict[str, Any], Counter[str], Counter[str]]:
    """Names and dtypes of what is held, and bytes as measured and as the formula has them, behind a backward pass."""
    engine = adapted(world, config)
    ema = Ema(engine, 0.9, on_host=False)
    learn(engine, config, world.rank, range(1))
    passes(engine, world.rank, 1)
    held = {kind: {name: s.local.dtype for name, s in engine.shards(kind).items()} for kind in STATE_KINDS}
    held["ema"] = {name: s.local.dtype for name, s in ema.shards().items()}
    held["frozen"] = {
        name: getattr(p, "ds_tensor", p).dtype for name, p in engine.module.named_parameters() if not p.requires_grad
    }
    with torch.device("meta"):
        expected = trained_state(config, AdaptedNet(), world.size, world.rank)
    wanted = Counter[str]()
    for (_, kind), size in expected.items():
        wanted[kind] += size
    return held, measured_trained(engine, ema), wanted


@pytest.mark.parametrize("engine", ADAPTED)
def test_only_what_is_trained_has_masters_moments_and_an_average(engine: str) -> None:
    everything = {name for name, _ in AdaptedNet().named_parameters()}
    for held, measured, wanted in run(RANKS[engine], engine, adapted_state, settings(engine, "train.precision=bf16")):
        frozen = held.pop("frozen")
        assert frozen == dict.fromkeys(everything - ADAPTERS, torch.bfloat16)
        assert held == dict.fromkeys(held, dict.fromkeys(ADAPTERS, torch.float32))
        del measured["buffers"]
        assert measured["gathered"] <= wanted["gathered"]
        del measured["gathered"], wanted["gathered"]
        assert +measured == +wanted


def train_adapters(world: World, config: Config, stop: int, recompute: bool = False) -> tuple[Seen, Tensor]:
    """Train four steps, with a new start from a checkpoint behind the first ``stop``; state and output."""
    engine = adapted(world, config, recompute)
    learn(engine, config, world.rank, range(stop))
    if stop < 4:
        writer = CheckpointWriter(config, world)
        writer.save(network_shards("student", engine), run_state(stop, world))
        writer.wait()
        engine = adapted(world, config, recompute)
        saved = open_newest(config.run_dir, world)
        assert saved is not None and {key.rpartition("/")[2] for key in saved.shapes} == ADAPTERS
        saved.load(network_shards("student", engine))
        engine.publish()
        engine.updates = saved.state.updates["student"]
        learn(engine, config, world.rank, range(stop, 4))
    with torch.no_grad():
        return look(engine), engine(*inputs(9, 0))


def plainly(config: Config, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """The same by plain PyTorch on one process."""
    net, optimizer_config = AdaptedNet(), config.student_optimizer
    net.load_state_dict(first_values())
    parameters = [p for p in net.parameters() if p.requires_grad]
    betas: Any = tuple(optimizer_config.betas)
    optimizer = torch.optim.AdamW(parameters, LR, betas, optimizer_config.eps, optimizer_config.weight_decay)
    for step in range(4):
        optimizer.zero_grad()
        for rank in range(size):
            given = inputs(step, rank)
            ((net(*given) - net(*given, adapter=False).detach() - 1).square().mean() / size).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
    return {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}, net(*inputs(9, 0)).detach()


@pytest.mark.parametrize("engine", ADAPTED)
def test_adapters_train_as_on_one_process_and_go_on_from_a_checkpoint(tmp_path: Path, engine: str) -> None:
    config = settings(engine, f"run_dir={tmp_path}")
    straight, resumed = (run(RANKS[engine], engine, train_adapters, config, stop) for stop in (4, 2))
    for (ours, output), (theirs, expected) in zip(resumed, straight, strict=True):
        assert all(same(ours.state[kind], theirs.state[kind]) for kind in STATE_KINDS)
        assert torch.equal(output, expected) and ours.updates == theirs.updates == 4
    tensors, output = plainly(config, RANKS[engine])
    result = whole([view for view, _ in straight], "param")
    assert result.keys() == tensors.keys() == ADAPTERS
    for name, tensor in tensors.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)
        assert not torch.equal(result[name], first_values()[name])
    torch.testing.assert_close(straight[0][1], output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ADAPTED)
def test_recomputation_sees_the_adapter_that_the_forward_pass_saw(engine: str) -> None:
    """Though the last pass before the backward one ran without."""
    kept, recomputed = (
        run(RANKS[engine], engine, train_adapters, settings(engine), 4, recompute) for recompute in (False, True)
    )
    for (ours, _), (theirs, _) in zip(recomputed, kept, strict=True):
        assert all(same(ours.state[kind], theirs.state[kind]) for kind in STATE_KINDS)
