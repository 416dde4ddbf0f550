"""Networks that are not built yet: an engine builds them where they will live and streams their weights in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ladd_dist.engines.base import Shard, Weights, fill
from ladd_dist.engines.compiled import compile_blocks


class Wrappable(Protocol):
    """A network that names the submodules to shard and compile one by one."""

    def wrap_points(self) -> list[nn.Module]:
        """In the order of the forward pass."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """How to build a network, and where its weights are read from.

    ``build`` allocates nothing on the meta device. Parameters are made in ``dtype``; ``compile`` has the
    wrap points compiled (see `engines.compiled`).
    """

    build: Callable[[], nn.Module]
    weights: Weights
    dtype: torch.dtype
    compile: bool = False

    def on_meta(self) -> nn.Module:
        """The network without storage."""
        with torch.device("meta"):
            module = self.build().to(self.dtype)
        if self.compile:
            compile_blocks(wrap_points(module))
        return module

    def whole(self, device: torch.device) -> nn.Module:
        """The whole network on a device; its weights go there one by one, never through a whole copy."""
        module = self.on_meta().to_empty(device=device)
        fill(whole_shards(module), self.weights)
        self.fill_buffers(module)
        return module

    @torch.no_grad()
    def fill_buffers(self, module: nn.Module) -> None:
        """Read the network's buffers, which are whole on every rank."""
        for name, buffer in module.named_buffers():
            buffer.copy_(self.weights.read(name, 0, buffer.numel()).view(buffer.shape))


def wrap_points(module: nn.Module) -> list[nn.Module]:
    """The wrap points that the network names."""
    points: Wrappable = module  # type: ignore[assignment]
    return points.wrap_points()


def whole_shards(module: nn.Module) -> dict[str, Shard]:
    """The parameters of a network that is whole on this rank, each as one shard."""
    return {name: Shard(p.shape, 0, p.data.view(-1)) for name, p in module.named_parameters()}
