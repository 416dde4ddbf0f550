"""What the trainer costs beside the mathematics of LADD, and what the shared fake pass saves.

Everything is a ratio within one run: two versions of an iteration take turns, so that a busy machine slows both.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn

from ladd_dist.config import Config, LaddConfig
from ladd_dist.diffusion.flow import add_noise, x0_from_velocity
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import trainable
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.ranges import whole
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import LaddError
from ladd_dist.log import progress
from ladd_dist.methods.base import STUDENT, Method, Metrics
from ladd_dist.methods.ladd.losses import adversarial_loss, r1_penalty
from ladd_dist.methods.ladd.method import make_heads
from ladd_dist.methods.ladd.sample import Sample, settings
from ladd_dist.methods.registry import build_method
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.planning.traffic import Traffic, TrafficCounter, expected, gathered_elements
from ladd_dist.training.trainer import Trainer

Iteration = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Median milliseconds per iteration, over the rounds, of two versions that took turns; ``second / first``."""

    first: float
    second: float
    ratio: float


class BareStep:
    """LADD in plain PyTorch on one process: what an iteration cannot cost less than.

    The same networks and the same mathematics with the shared fake pass, clipping, AdamW and EMA included; no
    engines, draws, data, metrics, signals or records.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        dtype = compute_dtype(config)
        folder = config.teacher.path
        teacher, student = family_of(folder).load(folder, dtype), Start.of(config).load(torch.float32)
        student.compute_dtype = dtype
        teacher.activation_checkpointing = config.teacher.activation_checkpointing
        student.activation_checkpointing = config.student.activation_checkpointing
        self.teacher, self.student = teacher.requires_grad_(False).eval().to(device), student.train().to(device)
        self.heads = make_heads(config, device).to(device)
        self.r1_weight = settings(config).r1_weight
        self.updates: list[tuple[list[nn.Parameter], torch.optim.Optimizer]] = [
            (list(net.parameters()), torch.optim.AdamW(net.parameters(), betas=(0.0, 0.99), lr=1e-6, fused=True))
            for net in (self.heads, self.student)
        ]
        self.average = [p.detach().clone() for p in self.student.parameters()]
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def __call__(self, sample: Sample) -> None:
        """One iteration: the heads' update, then the student's."""
        with self.autocast:
            self._iterate(sample)

    def _iterate(self, sample: Sample) -> None:
        batch, draws, taps = sample.batch, sample.draws, self.heads.taps
        x_t = add_noise(batch.latents, draws.student_noise, sample.t)
        x0_hat = x0_from_velocity(x_t, self.student(x_t, sample.t, batch.cond), sample.t)
        cut = x0_hat.detach().requires_grad_()
        fake = self.teacher(add_noise(cut, draws.fake_noise, sample.s), sample.s, batch.cond, taps)
        with torch.no_grad():
            x_r = add_noise(batch.latents, draws.real_noise, sample.r)
            real = self.teacher(x_r, sample.r, batch.cond, taps)
        judge = partial(self.heads, student_time=sample.t)
        d_real = judge(real, sample.grid, sample.r, batch.cond.pooled, 0, "twice" if self.r1_weight else "once")
        if self.r1_weight:
            d_real, slopes = d_real
        d_fake = judge([f.detach() for f in fake], sample.grid, sample.s, batch.cond.pooled)
        loss = adversarial_loss(d_real, "real").loss.mean() + adversarial_loss(d_fake, "fake").loss.mean()
        if self.r1_weight:
            loss = loss + self.r1_weight * r1_penalty(slopes, d_real[0, 0].numel())
        loss.backward()
        self._update(0)
        d_fake = judge(fake, sample.grid, sample.s, batch.cond.pooled, 0, "inputs")
        g_loss = adversarial_loss(d_fake, "generator").loss.mean()
        (gradient,) = torch.autograd.grad(g_loss, cut)
        x0_hat.backward(gradient)
        self._update(1)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [*self.student.parameters()], 0.01)

    def _update(self, index: int) -> None:
        parameters, optimizer = self.updates[index]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


class _Witness:
    """Passes on the trainer's step and remembers what it saw."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.last: Sample | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def iteration(self, index: int, samples: list[Sample]) -> Metrics:
        (self.last,) = samples
        return self._method.iteration(index, samples)


def overhead(config: Config, world: World, rounds: int) -> Ratio:
    """The bare mathematics, and the trainer's whole iteration on the same samples: data, records and all.

    A round is ``train.log_every`` iterations, so that each holds one logging step.
    """
    return take_turns(*bare_and_whole(config, world), config.train.log_every, rounds, world)


def bare_and_whole(config: Config, world: World) -> tuple[Iteration, Iteration]:
    """The bare mathematics on what the trainer's iteration saw last, and the trainer's next one.

    Raises:
        LaddError: if the configuration is not LADD in one process with the shared fake pass and the hinge loss alone.
    """
    method = _ladd(config, "the bare step")
    if config.engine != "local" or method.fake_pass != "shared":
        raise LaddError("the bare step is one process with the shared fake pass: set engine=local")
    for key, value in {"loss": "hinge", "distillation_weight": 0, "mismatched_weight": 0}.items():
        if getattr(method, key) != value:
            raise LaddError(f"the bare step has no other loss: set method.{key}={value}")
    trainer, bare = Trainer(config, world), BareStep(config, world.device)
    witness = _Witness(trainer.method)
    trainer.method = witness  # type: ignore[assignment]
    iterations = trainer.iterations()

    def bare_iteration() -> None:
        assert witness.last is not None
        bare(witness.last)

    next(iterations)
    return bare_iteration, lambda: next(iterations)


def order(config: Config, world: World, rounds: int) -> Ratio:
    """LADD's step with the shared fake pass, and in the two-pass order.

    Raises:
        LaddError: if the configuration is of another method, which has no such pass.
    """
    _ladd(config, "the fake pass")
    trainer = Trainer(config, world)
    samples = [trainer.samples(0) for _ in range(2)]

    def turn(method: Method) -> Iteration:
        numbers = count()
        return lambda: method.iteration(0, samples[next(numbers) % len(samples)])

    shared, two_pass = both_orders(config, world)
    return take_turns(turn(shared), turn(two_pass), len(samples), rounds, world)


def both_orders(config: Config, world: World) -> tuple[Method, Method]:
    """Networks of their own for the shared fake pass and for the two-pass order."""
    methods = [settings(config).model_copy(update={"fake_pass": name}) for name in ("shared", "two_pass")]
    shared, two_pass = (build_method(config.model_copy(update={"method": m}), world, Clock(world)) for m in methods)
    return shared, two_pass


def _ladd(config: Config, what: str) -> LaddConfig:
    if not isinstance(config.method, LaddConfig):
        raise LaddError(
            f"{what} is LADD's, but method.name={config.method.name}: of that only --what traffic is measured"
        )
    return config.method


def take_turns(first: Iteration, second: Iteration, block: int, rounds: int, world: World) -> Ratio:
    """Time ``rounds`` rounds of ``block`` iterations each, in which the two alternate iteration by iteration."""
    sums = []
    bar = progress("rounds", rounds, unit="round", world=world)
    for index in range(rounds + 1):
        pairs = [(seconds_of(second, world), seconds_of(first, world)) for _ in range(block)]
        if index:  # the first round warms up
            sums.append([sum(column) for column in zip(*pairs, strict=True)])
            bar.update()
    bar.close()
    seconds, firsts = zip(*sums, strict=True)
    first_ms, second_ms = (statistics.median(column) * 1000 / block for column in (firsts, seconds))
    return Ratio(first_ms, second_ms, second_ms / first_ms)


def seconds_of(run: Iteration, world: World) -> float:
    """Time on a GPU; on the CPU this process's own seconds, which other processes do not lengthen."""
    cuda = world.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure_traffic(config: Config, world: World) -> tuple[dict[str, Traffic], dict[str, int]]:
    """Collectives of one iteration as counted on this rank, and the bytes that theory expects of them."""
    trainer = Trainer(config, world)
    method = trainer.method
    method.iteration(0, trainer.samples(0))  # the first iteration sets up what later ones reuse
    samples = trainer.samples(1)
    with TrafficCounter() as counter:
        method.iteration(1, samples)
    modules = {name: engine.module for name, engine in method.trained.items()} | dict(method.frozen)
    layout = engine_entry(config.engine).layout(config, world.size, world.rank)
    sharded = {STUDENT, *method.frozen}
    elements = {
        name: gathered_elements(net.parameters(), layout if name in sharded else whole)
        for name, net in modules.items()
    }
    trained = gathered_elements(trainable(method.student.module).values(), layout)
    return dict(counter.seen), expected(config, elements, trained, micro_batches=len(samples))
