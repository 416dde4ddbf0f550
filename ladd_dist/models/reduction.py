"""Networks of some of a folder's layers and heads, whose tensors are parts of the folder's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ladd_dist.config import Recomputation
from ladd_dist.models.backbone import Backbone


@dataclass(frozen=True)
class Part:
    """What a tensor of the smaller network is of one in the folder.

    Attributes:
        name: of the folder's tensor.
        whole: shape of the folder's tensor.
        kept: of each dimension the positions that are kept, in the smaller tensor's order; None is all of them.
    """

    name: str
    whole: torch.Size
    kept: tuple[Tensor | None, ...]

    @property
    def shape(self) -> torch.Size:
        """Of the smaller tensor."""
        sizes = zip(self.whole, self.kept, strict=True)
        return torch.Size(size if kept is None else len(kept) for size, kept in sizes)


@dataclass(frozen=True)
class Reduced:
    """A smaller network, as its family describes it.

    Attributes:
        make: the backbone, by compute dtype and activation checkpointing, as of `Family.make`.
        parts: of every parameter and buffer that a file holds, by its name there.
    """

    make: Callable[[torch.dtype, Recomputation], Backbone]
    parts: Mapping[str, Part]
