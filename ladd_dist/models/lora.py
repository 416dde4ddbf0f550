"""Adapters that are trained already, as what they add to a network's weights: scaled, stacked, merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ladd_dist.errors import LaddError
from ladd_dist.models.adapters import Source
from ladd_dist.models.lazy import LazyTensors


@dataclass(frozen=True)
class Lora:
    """What adapters add to the weights of linear layers.

    Attributes:
        name: of the checkpoint or file, for errors.
        base: fingerprint of the teacher that it was trained with; None if the file does not say.
        kept: layers and heads of that teacher that it was trained on, see `Start.kept`; None if it was on another
            network, or if nothing says so.
        downs: ``(rank, in)`` by the weight's name in the backbone without adapters; ``ups`` ``(out, rank)``.
        scales: of their products.
    """

    name: str
    base: str | None
    kept: str | None
    downs: Mapping[str, Tensor]
    ups: Mapping[str, Tensor]
    scales: Mapping[str, float]

    def added(self, name: str) -> Tensor:
        """What it adds to a weight ``(out, in)``, fp32."""
        return self.scales[name] * (self.ups[name].float() @ self.downs[name].float())

    def check(self, network: Mapping[str, Tensor]) -> None:
        """Hold it against a network's parameters.

        Raises:
            LaddError: naming the first layer that the network does not have, or has of another shape.
        """
        for name, down in self.downs.items():
            shape = (self.ups[name].shape[0], down.shape[1])
            wanted = tuple(network[name].shape) if name in network else None
            if shape != wanted:
                there = f"of shape {wanted} there" if wanted else "not in it"
                raise LaddError(
                    f"{self.name} adds {shape} to {name}, which is {there}: it was trained on another base than this "
                    "student's"
                )


Scaled = tuple[Lora, float]
"""Adapters, and how much they count: 1 as they were trained."""


def called(loras: Sequence[Scaled]) -> list[str]:
    """What adapters are called, and how much they count."""
    return [f"{lora.name} x {scale:g}" for lora, scale in loras]


class MergedWeights(LazyTensors):
    """Weights with adapters added, fp32, each made when it is asked for: nothing that it reads from is changed.

    Args:
        start: has the weights that are not trained.
        trained: whole weights that take their place.
        loras: added to both, one after the other.
    """

    def __init__(self, start: Source, trained: Mapping[str, Tensor], loras: Sequence[Scaled]) -> None:
        def merge(name: str) -> Tensor:
            added = [scale * lora.added(name) for lora, scale in loras if name in lora.downs]
            weight = trained.get(name)
            if weight is None:
                weight = start.read(name, 0, added[0].numel()).view(added[0].shape).float()
            return sum(added, weight)

        super().__init__([*trained, *(name for lora, _ in loras for name in lora.downs)], merge)
