"""The method contract: what the trainer needs of an objective.

The trainer, the record, comparisons, memory formula, checkpoints and the report loop over what is declared here, and
know no method by name. A method is registered in `methods.registry`; its settings are a section of
`config.method`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ladd_dist.config import Config, OptimizerConfig
from ladd_dist.diffusion.batch import Batch
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import Engine
from ladd_dist.engines.learning_rate import learning_rate
from ladd_dist.methods.charts import Chart
from ladd_dist.methods.passes import Pass, runs

Metrics = dict[str, Tensor]
"""By name: 0-d tensors, or vectors with an entry for each of what `Method.ENTRY` names; on the device, not averaged
over ranks. ``skipped`` is 1 where an update was left out for a gradient that is not finite. NaN in any other
iteration stands for what was not there to be measured, such as a noise level that no sample has; averages leave it
out. Others may be there in some iterations only, on every rank alike, such as those of one bucket, see
`by_bucket`."""

STUDENT = "student"
"""The trained network that every method has: it is averaged, previewed, evaluated and exported."""


@dataclass(frozen=True)
class Networks:
    """A method's networks by name, without storage.

    The student goes where the engine puts it and other trained networks are whole on every rank; frozen ones are
    placed by ``teacher.placement``.
    """

    trained: Mapping[str, nn.Module]
    frozen: Mapping[str, nn.Module]


class Method(ABC):
    """An objective with its networks on this rank.

    Attributes:
        OPTIMIZERS: trained networks -> the configuration's section with their optimizer.
        COMPARED: metrics that a comparison of two runs looks at: no speeds, which always differ, and no accuracies,
            which jump where rounding carries a logit over zero. The first two are shown step by step.
        PAIRED: metrics that compare the samples that a rank has in an iteration, and are left out where it has one.
        FIELDS: columns that a dataset must have.
        BINDING: sections or keys outside ``method`` that must be a checkpoint's own when a run resumes from it.
        UNBOUND: keys in ``method`` that need not be; all others there must.
        ENTRY: what the entries of a vector metric belong to, one each; it names them in W&B.
        REMEDY: what to do when training diverges, as a part of an error's line.
        CHARTS: the report's figures of metrics, where no setting says more, see `charts`.
        TRAINED: how the student was trained, in the words of an export's model card.
        trained: engines by name of their network.
        frozen: networks without an optimizer, on their devices, by name.
        student: ``trained[STUDENT]``.
        teacher_features: the frozen teacher up to some block, as `Backbone.forward` with taps; None without one.
    """

    OPTIMIZERS: ClassVar[Mapping[str, str]]
    COMPARED: ClassVar[Sequence[str]]
    PAIRED: ClassVar[Sequence[str]] = ()
    FIELDS: ClassVar[Sequence[str]]
    BINDING: ClassVar[Sequence[str]] = ()
    UNBOUND: ClassVar[Sequence[str]] = ()
    ENTRY: ClassVar[str] = "entry"
    REMEDY: ClassVar[str]
    CHARTS: ClassVar[Sequence[Chart]]
    TRAINED: ClassVar[str]

    trained: Mapping[str, Engine]
    frozen: Mapping[str, nn.Module]
    student: Engine
    teacher_features: Callable[..., Any] | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        """Check its settings against the networks' configurations.

        Raises:
            LaddError: naming the setting that does not fit.
        """
        return None

    @classmethod
    @abstractmethod
    def build(cls, config: Config, world: World, clock: Clock) -> "Method":
        """Build the networks where the configuration puts them.

        Raises:
            LaddError: if weights are missing or do not fit their configuration.
        """

    @classmethod
    @abstractmethod
    def networks(cls, config: Config) -> Networks:
        """The networks on the meta device."""

    @classmethod
    @abstractmethod
    def passes(cls, config: Config) -> Sequence[Pass]:
        """What runs for one micro-batch, in the order of the forward passes."""

    @classmethod
    def forward_backward(cls, config: Config) -> Mapping[str, int]:
        """How often each network that may be sharded runs forward or backward for one micro-batch, by name."""
        whole = set(cls.OPTIMIZERS) - {STUDENT}
        return {name: count for name, count in runs(cls.passes(config)).items() if name not in whole}

    @classmethod
    def teacher_blocks(cls, config: Config) -> int:
        """How many of the teacher's blocks `teacher_features` has."""
        return 0

    @classmethod
    def mismatched_prompts(cls, config: Config) -> str | None:
        """The setting that needs `Batch.mismatched`, as errors name it; None if nothing does."""
        return None

    @abstractmethod
    def sample(self, seed: int, index: int, batch: Batch, grid: tuple[int, int]) -> Any:
        """Attach iteration ``index``'s randomness to a micro-batch: a pure function of seed, index and sample ids.

        Args:
            seed: the run's, another one after it has gone back to an earlier checkpoint.
            index: of the iteration, from 0.
            grid: rows and columns of the image tokens of the batch's latents.

        Returns:
            What `iteration` takes for this micro-batch.
        """

    @abstractmethod
    def iteration(self, index: int, samples: list[Any]) -> Metrics:
        """Update every trained network once, with this rank's micro-batches of the global batch.

        Args:
            index: from 0.
            samples: one per micro-batch, made by `sample`.

        Returns:
            `Metrics`, averaged over micro-batches.
        """

    @classmethod
    def compared(cls, config: Config) -> Sequence[str]:
        """`COMPARED`, and what only some settings record."""
        return cls.COMPARED

    @classmethod
    def charts(cls, config: Config) -> Sequence[Chart]:
        """The report's figures; all that any setting changes is what panels say."""
        return cls.CHARTS

    @classmethod
    def milestones(cls, config: Config) -> Mapping[int, str]:
        """Iterations at which something changes, and what, for the report."""
        return {}

    @classmethod
    def blocks(cls, config: Config) -> Sequence[int] | None:
        """The teacher's blocks that curves "by block" have an entry each for; None is all of them."""
        return None

    @classmethod
    def facts(cls, config: Config) -> Mapping[str, str]:
        """Its settings in words, for the report."""
        return {}

    @classmethod
    @abstractmethod
    def line(cls, row: Mapping[str, Any]) -> str:
        """What the console says of a recorded row."""


def by_bucket(metrics: Metrics, bucket: str) -> Metrics:
    """Metrics, and again under names of the iteration's bucket, such as ``accuracy/32x64``."""
    return metrics | {f"{name}/{bucket}": value for name, value in metrics.items()}


def optimizer(config: Config, section: str) -> OptimizerConfig:
    """The settings in a section that `Method.OPTIMIZERS` names."""
    found: OptimizerConfig = getattr(config, section)
    return found


def rate(config: Config, section: str, index: int, factor: float = 1.0) -> float:
    """The learning rate of iteration ``index`` (from 0) by a section's schedule, times an `Engine.rate_factor`."""
    return factor * learning_rate(optimizer(config, section), index, config.train.iterations)


def rate_key(section: str) -> str:
    """The metric that records a section's learning rate, such as ``head_lr`` of ``head_optimizer``."""
    return section.removesuffix("_optimizer") + "_lr"
