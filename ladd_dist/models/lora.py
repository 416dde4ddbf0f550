"""Adapters that are trained already, as what they add to a network's weights: scaled, stacked, merged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ladd_dist.errors import LaddError
from ladd_dist.models.adapters import Source


@dataclass(frozen=True)
class Lora:
    """What adapters add to the weights of linear layers.

    Attributes:
        name: of the checkpoint or file, for errors.
        base: fingerprint of the teacher that it was trained with; None if the file does not say.
        downs: ``(rank, in)`` by the weight's name in the backbone without adapters; ``ups`` ``(out, rank)``.
        scales: of their products.
    """

    name: str
    base: str | None
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


class MergedWeights(Mapping[str, Tensor]):
    """Weights with adapters added, fp32, each made when it is asked for: nothing that it reads from is changed.

    Args:
        start: has the weights that are not trained.
        trained: whole weights that take their place.
        loras: added to both, one after the other.
    """

    def __init__(self, start: Source, trained: Mapping[str, Tensor], loras: Sequence[Scaled]) -> None:
        self._start, self._trained, self._loras = start, trained, loras

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        added = [scale * lora.added(name) for lora, scale in self._loras if name in lora.downs]
        weight = self._trained.get(name)
        if weight is None:
            weight = self._start.read(name, 0, added[0].numel()).view(added[0].shape).float()
        return sum(added, weight)

    @cached_property
    def _names(self) -> dict[str, None]:
        return dict.fromkeys([*self._trained, *(name for lora, _ in self._loras for name in lora.downs)])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
