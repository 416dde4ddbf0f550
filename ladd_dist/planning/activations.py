"""What an iteration's tensors take beside the state, by which of its parts are alive when."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ladd_dist.config import Config, Recomputation
from ladd_dist.engines.registry import engine_entry
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.passes import Pass
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.costs import Costs

HOW: Mapping[Recomputation, str] = {False: "kept", "selective": "recomputed selectively", True: "recomputed"}
"""What becomes of a network's activations, in words; each takes less memory and more time than the one before."""


@dataclass(frozen=True)
class Moment:
    """Of a micro-batch, and the bytes that are alive then.

    Attributes:
        during: its name.
        held: kept graphs, by the network that they belong to.
        transient: what the moment itself needs.
        running: the backbone that runs, if any.
        graph: of ``transient``, what is kept of a forward pass for its backward pass.
        between: whether it does so between two of its blocks.
        backward: whether it runs backward.
        gradients: whether it is the running network's backward pass to its weights.
        reached: whether gradients of all of its weights are there, and not of none yet.
    """

    during: str
    held: dict[str, int]
    transient: int
    running: str = ""
    graph: int = 0
    between: bool = False
    backward: bool = False
    gradients: bool = False
    reached: bool = False

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.held.values()) + self.transient


def checkpointed(config: Config, network: str) -> Recomputation:
    """What of a network's activations is recomputed in its backward pass."""
    return config.student.activation_checkpointing if network == STUDENT else config.teacher.activation_checkpointing


def called_again(config: Config) -> bool:
    """Whether the student's blocks are called again in its backward pass; compiled selectively they are not."""
    what = config.student.activation_checkpointing
    return what is True or (what == "selective" and config.student.compile is not True)


def moments(config: Config, costs: Costs, samples: int) -> Iterator[Moment]:
    """Those of a micro-batch of so many samples that may be the worst.

    Graphs of `Pass`es that reach the student or the inputs are kept until the last forward pass, and go one by one,
    the last first. Heads that learn while the teacher runs hold one group's features and graph at a time.
    """
    engine = engine_entry(config.engine).residency(config)
    held: dict[str, int] = {}
    waiting: list[tuple[str, Pass]] = []
    looking: Pass | None = None  # a pass that gives features and keeps none: the next heads learn while it runs
    for passed in method_of(config).passes(config):
        cost = costs.of(passed, checkpointed(config, passed.network), samples, engine)
        if passed.network == "heads":
            transient, running = max(cost.forward_peak, cost.backward_peak), ""
            if looking is not None:
                look, group = costs.of(looking, False, samples), samples * costs.feature_bytes(costs.at_once(passed))
                running = looking.network
                yield Moment(f"{running} forward for the heads", dict(held), look.forward_peak + group, running)
                transient += look.between + group
            yield Moment("heads", dict(held), transient, running, between=True)
            looking = None
            continue
        name = f"{passed.network} for the heads" if passed.network == STUDENT and passed.features else passed.network
        graph = 0 if passed.gradient == "none" else cost.kept
        yield Moment(f"{name} forward", dict(held), cost.forward_peak, passed.network, graph)
        looking = passed if passed.features and passed.gradient == "none" else None
        if passed.gradient != "none":
            held[name] = cost.kept
            waiting.append((name, passed))
    for name, passed in reversed(waiting):
        cost = costs.of(passed, checkpointed(config, passed.network), samples, engine)
        transient, to_weights = cost.backward_peak - cost.kept, passed.gradient == "weights"
        moment = Moment(
            f"{name} backward", dict(held), transient, passed.network, backward=True, gradients=to_weights
        )
        yield moment
        del held[name]
        if to_weights:  # its graph has gone, its gradients have come
            yield replace(moment, during=f"end of {moment.during}", held=dict(held), reached=True)
