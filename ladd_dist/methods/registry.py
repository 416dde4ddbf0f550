"""Which methods there are, by ``method.name``."""

from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.methods.base import Method
from ladd_dist.methods.dpo import Dpo
from ladd_dist.methods.flow_matching import FlowMatching
from ladd_dist.methods.ladd.method import Ladd

METHODS: dict[str, type[Method]] = {"ladd": Ladd, "flow_matching": FlowMatching, "dpo": Dpo}


def method_of(config: Config) -> type[Method]:
    """The method that a configuration names."""
    return METHODS[config.method.name]


def build_method(config: Config, world: World, clock: Clock) -> Method:
    """Build it, networks and all.

    Raises:
        LaddError: if weights are missing or do not fit their configuration.
    """
    return method_of(config).build(config, world, clock)
