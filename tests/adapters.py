"""A small network of frozen layers with trained low-rank adapters, and where its values come from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ladd_dist.engines.base import TensorSource

RANK = 2


class AdaptedLinear(nn.Linear):
    """A frozen linear layer and, if a pass asks for it, its adapter."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.empty(RANK, inputs)), nn.Parameter(torch.empty(outputs, RANK))

    def forward(self, x: Tensor, adapter: bool) -> Tensor:
        plain = super().forward(x)
        return plain + functional.linear(functional.linear(x, self.down), self.up) if adapter else plain


class AdaptedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = AdaptedLinear(6, 5), nn.Linear(5, 6).requires_grad_(False)

    def forward(self, x: Tensor, adapter: bool) -> Tensor:
        return x + self.back(torch.tanh(self.there(x, adapter)))


class AdaptedNet(nn.Module):
    """Whether the adapters count is an argument, which recomputation passes on as the forward pass did."""

    def __init__(self, dtype: torch.dtype = torch.float32, recompute: bool = False) -> None:
        super().__init__()
        self.dtype, self.recompute = dtype, recompute
        self.first = nn.Linear(3, 6).requires_grad_(False)
        self.blocks = nn.ModuleList(AdaptedBlock() for _ in range(3))
        self.last = nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("shift", torch.empty(3))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, adapter: bool = True) -> Tensor:
        x = self.first((x + t[:, None] * cond).to(self.dtype))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, adapter, use_reentrant=False)
            else:
                x = block(x, adapter)
        return (self.last(x) + self.shift.to(x.dtype)).float()

    def wrap_points(self) -> list[nn.Module]:
        return list(self.blocks)


@dataclass(frozen=True)
class Folder:
    """Stands for a folder that holds the frozen weights and has never heard of adapters."""

    tensors: dict[str, Tensor]

    def read(self, name: str, offset: int, length: int) -> Tensor:
        return self.tensors[name].flatten()[offset : offset + length]


@dataclass(frozen=True)
class Initialized:
    """Values for parameters that no folder holds; all others are read from ``rest``."""

    values: dict[str, Tensor]
    rest: TensorSource

    def read(self, name: str, offset: int, length: int) -> Tensor:
        if name in self.values:
            return self.values[name].flatten()[offset : offset + length]
        return self.rest.read(name, offset, length)


def first_values() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=draw) * 0.5 for name, t in AdaptedNet().state_dict().items()}


ADAPTERS = {name for name in first_values() if name.endswith((".down", ".up"))}


def source() -> Initialized:
    """Adapters from memory, all else from the folder."""
    given = first_values()
    adapters = {name: given.pop(name) for name in ADAPTERS}
    return Initialized(adapters, Folder(given))


def inputs(step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, levels and conditioning of one rank's share of a step."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(4, 3, generator=draw), torch.rand(4, generator=draw), torch.randn(4, 3, generator=draw)
