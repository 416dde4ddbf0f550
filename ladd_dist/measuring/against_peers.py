"""Our step beside the public trainers' loop: whether both compute the same, and how much sooner ours is done.

The batch is drawn, not read, so that no dataset is needed, and neither loop's data loading counts. What counts is all
from a batch to moved weights: noise and noise levels, both updates, clipping, the average, our metrics.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.compiled import is_compiled
from ladd_dist.engines.ema import Ema
from ladd_dist.errors import LaddError
from ladd_dist.log import progress
from ladd_dist.measuring.benchmark import seconds_of
from ladd_dist.measuring.peers import PeerLoop
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.sample import settings
from ladd_dist.methods.networks import meta_backbone
from ladd_dist.planning.networks import check_networks
from ladd_dist.planning.samples import random_batch


@dataclass(frozen=True)
class Comparison:
    """What both loops made of one batch, and how long they took.

    Attributes:
        losses: of the first iteration, from equal weights with equal noise: ours and theirs by name.
        compiled: which of our networks are.
        start: seconds of our first two iterations, in which what is compiled is compiled.
        ours: CPU seconds of an iteration, round by round; on a GPU seconds.
        theirs: of the peers', in the same rounds.
    """

    losses: dict[str, tuple[float, float]]
    compiled: list[str]
    start: float
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def quartiles(self) -> list[float]:
        """Of the ratios; the second is their median."""
        return statistics.quantiles(self.ratios, n=4)

    def __str__(self) -> str:
        low, middle, high = self.quartiles
        ours, theirs = (statistics.median(times) * 1000 for times in (self.ours, self.theirs))
        spread = f"half of {len(self.ours)} rounds within {low:.3f} to {high:.3f}"
        return f"ours {ours:.0f} ms, peers {theirs:.0f} ms per iteration: {middle:.3f}x ({spread})"

    def record(self, config: Config) -> dict[str, Any]:
        """All of it with the command, the machine, how busy that is, and what the networks are."""
        teacher = meta_backbone(config.teacher.path)
        describe = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
        return {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit.stdout.strip() or "unknown",
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "torch": torch.__version__,
            "blocks": teacher.depth,
            "width": teacher.width,
            "batch": config.train.global_batch,
            "bucket": config.synthesis.buckets[0],
            "precision": config.train.precision,
            "compiled": self.compiled,
            "r1_weight": settings(config).r1_weight,
            "losses": self.losses,
            "start_s": round(self.start, 1),
            "ratio": [round(ratio, 3) for ratio in self.quartiles],
            "ours_ms": [round(1000 * each, 1) for each in self.ours],
            "peers_ms": [round(1000 * each, 1) for each in self.theirs],
        }


class Sides:
    """Both loops on one batch, from equal weights.

    Raises:
        LaddError: if the configuration is not LADD in one process with the hinge loss alone.
    """

    def __init__(self, config: Config, world: World) -> None:
        method = settings(config) if config.method.name == "ladd" else None
        if method is None or config.engine != "local":
            raise LaddError("the peers' loop is LADD in one process: set method.name=ladd and engine=local")
        for key, value in {"loss": "hinge", "distillation_weight": 0, "mismatched_weight": 0}.items():
            if getattr(method, key) != value:
                raise LaddError(f"the peers' loop has no other loss: set method.{key}={value}")
        if config.discriminator.convolve != "grid":
            raise LaddError("the peers' loop has heads on planes: set discriminator.convolve=grid")
        if config.discriminator.student_time:
            raise LaddError("the peers' heads are not told so much: set discriminator.student_time=false")
        if config.train.micro_batch not in (None, config.train.global_batch):
            raise LaddError("the peers' loop takes a batch at once: leave train.micro_batch out")
        self.config, self.world = config, world
        space, bucket = check_networks(config), config.synthesis.buckets[0]
        self.method = Ladd.build(config, world, Clock(world))
        self.batch = random_batch(config, bucket, config.train.global_batch, world.device)
        self.grid = space.grid(*self.batch.latents.shape[2:])
        self.ema = Ema.of(self.method.student, config)
        networks: dict[str, Any] = {"student": self.method.student.module, **self.method.frozen}
        self.compiled = [name for name, net in networks.items() if is_compiled(net.wrap_points()[0])]
        self.peers = PeerLoop(config, self.method.heads.module, world.device)  # type: ignore[arg-type]
        self._ours = self._theirs = 0

    def first(self) -> dict[str, tuple[float, float]]:
        """One iteration of each with equal noise; losses by name, ours and theirs."""
        sample = self.method.sample(self.config.seed, 0, self.batch, self.grid)
        ours, theirs = self.method.iteration(0, [sample]), self.peers.iteration(sample)
        return {name: (ours[name].item(), theirs[name].item()) for name in theirs}

    def ours(self) -> None:
        """One iteration as the trainer makes it."""
        sample = self.method.sample(self.config.seed, self._ours, self.batch, self.grid)
        self.method.iteration(self._ours, [sample])
        self.ema.update(self._ours)
        self._ours += 1

    def theirs(self) -> None:
        """One iteration as peers make it."""
        self.peers.iteration(self.peers.draw(self._theirs, self.batch, self.grid))
        self._theirs += 1


def compare_with_peers(config: Config, world: World, rounds: int) -> Comparison:
    """Interleaved rounds of one iteration each, after the first of each and two more to warm up.

    Raises:
        LaddError: for a single round, or a configuration that the peers' loop does not have.
    """
    if rounds < 2:
        raise LaddError("one round has no quartiles: set --rounds 2 or more")
    sides = Sides(config, world)
    begin = time.perf_counter()
    losses = sides.first()
    sides.ours()
    start = time.perf_counter() - begin
    sides.ours()
    sides.theirs()
    ours, theirs = list[float](), list[float]()
    bar = progress("rounds", rounds, unit="round", world=world)
    for _ in range(rounds):
        ours.append(seconds_of(sides.ours, world))
        theirs.append(seconds_of(sides.theirs, world))
        bar.update()
    bar.close()
    return Comparison(losses, sides.compiled, start, ours, theirs)
