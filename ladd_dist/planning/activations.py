"""The most that an iteration's tensors take beside the state, by which of its parts are alive when."""

from dataclasses import dataclass

from ladd_dist.config import Config
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.passes import Pass
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.costs import Costs


@dataclass(frozen=True)
class Peak:
    """Bytes alive at the worst moment of a micro-batch.

    Attributes:
        during: that moment.
        held: kept graphs at that moment, by the network that they belong to.
        transient: what the moment itself needs.
    """

    during: str
    held: dict[str, int]
    transient: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.held.values()) + self.transient


def checkpointed(config: Config, network: str) -> bool:
    """Whether a network's activations are recomputed in its backward pass."""
    return config.student.activation_checkpointing if network == STUDENT else config.teacher.activation_checkpointing


def activation_peak(config: Config, costs: Costs, samples: int) -> Peak:
    """The worst moment of a micro-batch of so many samples.

    Graphs of `Pass`es that reach the student or the inputs are kept until the last forward pass, and go one by one,
    the last first. Heads that learn while the teacher runs hold one group's features and graph at a time.
    """
    moments: list[Peak] = []
    held: dict[str, int] = {}
    waiting: list[tuple[str, Pass]] = []
    looking: Pass | None = None  # a pass that gives features and keeps none: the next heads learn while it runs
    for passed in method_of(config).passes(config):
        cost = costs.of(passed, checkpointed(config, passed.network), samples)
        if passed.network == "heads":
            transient = max(cost.forward_peak, cost.backward_peak)
            if looking is not None:
                look, group = costs.of(looking, False, samples), samples * costs.feature_bytes(costs.at_once(passed))
                moments.append(Peak("teacher forward for the heads", dict(held), look.forward_peak + group))
                transient += look.between + group
            moments.append(Peak("heads", dict(held), transient))
            looking = None
            continue
        name = f"{passed.network} for the heads" if passed.network == STUDENT and passed.features else passed.network
        moments.append(Peak(f"{name} forward", dict(held), cost.forward_peak))
        looking = passed if passed.features and passed.gradient == "none" else None
        if passed.gradient != "none":
            held[name] = cost.kept
            waiting.append((name, passed))
    for name, passed in reversed(waiting):
        cost = costs.of(passed, checkpointed(config, passed.network), samples)
        moments.append(Peak(f"{name} backward", dict(held), cost.backward_peak - cost.kept))
        del held[name]
    return max(moments, key=lambda moment: moment.bytes)
