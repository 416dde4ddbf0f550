"""A cluster on paper, and how long its links take for a collective, as NCCL reckons it.

NCCL's own tuning model (`src/graph/tuning.cc`, ring, protocol "Simple"): a base time, one latency for each step of
the ring, inside a node or between two, and the bytes over the slowest link of the ring.
"""

from dataclasses import dataclass

from ladd_dist.errors import LaddError
from ladd_dist.planning.cards import HOST_SECONDS, REACHED, Card

_BASE, _INSIDE, _BETWEEN = 8.4e-6, 3.4e-6, 9.6e-6
"""Seconds: of a call, of a step between GPUs of a node, of a step between nodes."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs.

    Attributes:
        per_node: GPUs of a node.
        nic: bytes/s between nodes for each GPU, in each direction.
        storage: bytes/s at which all ranks together read the dataset; None is as fast as they need.
        host: seconds that a rank's host takes to launch an operator.
    """

    card: Card
    per_node: int
    nodes: int = 1
    nic: float = 50e9
    storage: float | None = None
    host: float = HOST_SECONDS

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.per_node * self.nodes


@dataclass(frozen=True)
class Group:
    """Ranks that take part in a collective: as many on each of its nodes."""

    per_node: int
    nodes: int

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.per_node * self.nodes


def sharding_groups(cluster: Cluster, replicas: int) -> tuple[Group, Group]:
    """Ranks that shard a network, which are neighbours, and ranks that hold the same shard of it.

    Raises:
        LaddError: if the first are on several nodes, and not all of each.
    """
    within = cluster.gpus // replicas
    if cluster.per_node % within and within % cluster.per_node:
        raise LaddError(
            f"fsdp2.replicas={replicas} shards over {within} ranks, which neither divide a node of "
            f"{cluster.per_node} nor fill nodes, and no time is known for: take replicas with which they do"
        )
    if within <= cluster.per_node:
        alike = cluster.per_node // within
        return Group(within, 1), Group(alike, cluster.nodes)
    nodes = within // cluster.per_node
    return Group(cluster.per_node, nodes), Group(1, cluster.nodes // nodes)


@dataclass(frozen=True)
class Sent:
    """Seconds, and bytes that each GPU sends to others of its node and, as its share, to other nodes."""

    seconds: float = 0.0
    inside: float = 0.0
    between: float = 0.0

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(self.seconds + other.seconds, self.inside + other.inside, self.between + other.between)


def collective(cluster: Cluster, group: Group, whole: float, calls: float, rounds: int = 1) -> Sent:
    """One kind of collective.

    Args:
        whole: bytes of the whole tensors, of all calls together.
        rounds: how often the bytes go around: once for a gather or a scatter, twice for an all-reduce.
    """
    if group.size == 1 or not whole:
        return Sent()
    around = rounds * whole * (group.size - 1) / group.size
    # A node's groups share its links to the others; each has as many of them as ranks.
    slowest = cluster.card.link if group.nodes == 1 else min(cluster.card.link, cluster.nic * group.per_node)
    steps = (group.size - group.nodes) * _INSIDE + (group.nodes - 1) * _BETWEEN
    seconds = calls * (_BASE + rounds * steps) + around / (slowest * REACHED.link)
    if group.nodes == 1:
        return Sent(seconds, inside=around)
    return Sent(seconds, around * (group.per_node - 1) / group.per_node, around / group.per_node)
