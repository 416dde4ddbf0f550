"""A run before it is paid for: what it needs, how long it takes, what it costs. All of it is predicted."""

from dataclasses import dataclass

from kernels import ARCHITECTURES
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.engines.build import FLOAT8_CAPABILITY
from ladd_dist.engines.settings import check_ranks, check_settings
from ladd_dist.errors import LaddError
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.cards import REACHED, Card
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.needs import Needs, needs
from ladd_dist.planning.timing import StepTime, arithmetic_seconds, step_time

WORKSPACE = 4 * 10**9
"""Bytes left to CUDA's context, NCCL's buffers, libraries' workspaces and what the allocator cannot use: assumed."""


@dataclass(frozen=True)
class Plan:
    """One configuration on one cluster.

    Attributes:
        samples: of a micro-batch.
        micro_batches: of an iteration, on each GPU.
        flops: of a sample by part, recomputed blocks included.
    """

    config: Config
    cluster: Cluster
    samples: int
    micro_batches: int
    needs: Needs
    time: StepTime
    flops: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for it."""
        return self.needs.total <= self.cluster.card.memory

    @property
    def mfu(self) -> float:
        """Share of the card's bf16 peak that goes into the model's own arithmetic."""
        return self.time.model_flops / self.time.seconds / self.cluster.card.bf16

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs."""
        return self.config.train.global_batch / self.time.seconds

    @property
    def hours(self) -> float:
        """To ``train.iterations``, without start, checkpoints, previews and evaluations."""
        return self.config.train.iterations * self.time.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.hours * self.cluster.gpus


def largest_bucket(config: Config) -> Bucket:
    """The bucket with most pixels: an iteration of it takes longest and needs most."""
    return max(map(Bucket.parse, config.synthesis.buckets), key=lambda bucket: bucket.height * bucket.width)


def plan(config: Config, cluster: Cluster, costs: Costs, workspace: int = WORKSPACE) -> Plan:
    """Predict.

    Raises:
        LaddError: if the configuration cannot run on so many ranks, or not in bf16.
    """
    if config.train.precision != "bf16":
        raise LaddError(f"train.precision={config.train.precision}: times are known for bf16 alone: set bf16")
    check_settings(config)
    check_ranks(config, cluster.gpus)
    _check_card(config, cluster.card)
    samples, micro_batches = config.micro_batch(cluster.gpus), config.accumulation(cluster.gpus)
    needed = needs(config, costs, cluster.gpus, samples, workspace)
    time = step_time(config, costs, cluster, samples, micro_batches)
    return Plan(config, cluster, samples, micro_batches, needed, time, flops_by_part(config, costs))


def _check_card(config: Config, card: Card) -> None:
    """As the launchers do on a GPU; of one that is given by its ceilings nothing is known."""
    if (arch := card.arch) is None:
        return
    major, minor = FLOAT8_CAPABILITY
    for network in ("teacher", "student"):
        if getattr(config, network).float8 and arch < 10 * major + minor:
            raise LaddError(
                f"{network}.float8=true needs compute capability {major}.{minor}, and {card.name} has "
                f"{card.capability}: set {network}.float8=false"
            )
    for part in ("attention", "heads"):
        if getattr(config.kernels, part) == "triton" and arch not in ARCHITECTURES:
            raise LaddError(
                f"kernels.{part}=triton: there are no kernels for {card.name} ({card.capability}): set auto"
            )


def flops_by_part(config: Config, costs: Costs) -> dict[str, float]:
    """Of a sample, without what is recomputed."""
    found: dict[str, float] = {}
    for passed in method_of(config).passes(config):
        name = "teacher" if passed.features else passed.network
        cost = costs.of(passed, False)
        backward = f"{name} {'input gradient' if passed.gradient == 'inputs' else 'backward'}"
        for part, work in ((f"{name} forward", cost.forward), (backward, cost.backward)):
            if work.flops:
                found[part] = found.get(part, 0.0) + work.flops
    return found


@dataclass(frozen=True)
class Synthesis:
    """Making a dataset, on the same cluster: the teacher's passes alone, without text encoders."""

    images: int
    flops: float
    gpu_hours: float
    bytes: int


def synthesis(config: Config, cluster: Cluster, costs: Costs, images: int) -> Synthesis:
    """Of so many pictures."""
    settings = config.synthesis
    passes = settings.steps * (2 if settings.guidance > 1 else 1)
    work = costs.drawing() * (images * passes)
    seconds = arithmetic_seconds(work, cluster) + work.moved / (cluster.card.bandwidth * REACHED.operators)
    return Synthesis(images, work.flops, seconds / 3600, images * costs.sample_bytes)
