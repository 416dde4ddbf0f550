"""Whether a network's blocks are compiled: as asked, or where the run is long enough to earn what that costs."""

import os
import shutil

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.registry import engine_entry
from ladd_dist.log import log
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.registry import family_of

_EARNED = 1e14
"""FLOP of a network and rank over the whole run from which compiling pays on a CPU. It costs about a minute of it for
each network and saved 9% (docs/speed.md), which at 50 GFLOP/s is earned after 3e13; three times that, to be safe."""
_FORWARDS = 3
"""What an iteration runs of a network, in forward passes, be it one and a backward pass by weights, or two and one by
inputs."""


def compiles(config: Config, network: str, net: Backbone, world: World) -> bool:
    """What ``student.compile`` or ``teacher.compile`` asks for; ``auto`` decides, by the configuration alone.

    Never by what is left of a run: resumed, it must go on with the same numbers.

    Args:
        network: ``student`` or ``teacher``.
        net: it, without storage.
    """
    setting = config.student.compile if network == "student" else config.teacher.compile
    if setting != "auto":
        return setting
    # On a GPU the whole step was never timed with and without.
    if world.device.type != "cpu" or not engine_entry(config.engine).compiles or not _has_compiler():
        return False
    work = _work(config, net, world)
    if work < _EARNED:
        return False
    log(f"the {network}'s blocks are compiled, which this run of {work:.0e} FLOP earns back; compile=false does not")
    return True


def _has_compiler() -> bool:
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def _work(config: Config, net: Backbone, world: World) -> float:
    """FLOP of its blocks on this rank, roughly."""
    folder = config.teacher.path
    _, factor = family_of(folder).latent_space(folder)
    height, width = (int(side) // factor for side in config.synthesis.buckets[0].split("x"))
    rows, columns = family_of(folder).token_grid(folder, "teacher")(height, width)
    weights = sum(p.numel() for block in net.wrap_points() for p in block.parameters())
    tokens = rows * columns * config.train.global_batch / world.size * config.train.iterations
    return 2 * _FORWARDS * weights * tokens
