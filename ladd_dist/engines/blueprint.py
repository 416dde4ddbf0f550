"""Networks that are not built yet: an engine builds them where they will live and streams their weights in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ladd_dist.engines.base import Shard, TensorSource, fill
from ladd_dist.engines.compiled import compile_blocks


class Wrappable(Protocol):
    """A network that names the submodules to shard and compile one by one.

    Its forward pass depends on its arguments and weights alone (see `engines.base`).
    """

    def wrap_points(self) -> list[nn.Module]:
        """In the order of the forward pass."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """How to build a network, and where its weights are read from.

    ``build`` allocates nothing on the meta device, and says by ``requires_grad`` what is trained. Frozen parameters
    are made in ``dtype``, the compute precision; trained ones in fp32 (master weights), and with them the buffers.
    ``weights`` has all of them by their names in the network, those that no folder holds included.
    ``compile`` has the wrap points compiled (see `engines.compiled`). ``finish`` is done to the whole network once
    its weights are there, such as putting some of them in fewer bits.
    """

    build: Callable[[], nn.Module]
    weights: TensorSource
    dtype: torch.dtype
    compile: bool = False
    finish: Callable[[nn.Module], None] | None = None

    def on_meta(self) -> nn.Module:
        """The network without storage."""
        with torch.device("meta"):
            module = cast(self.build(), self.dtype)
        if self.compile:
            compile_blocks(wrap_points(module))
        return module

    def whole(self, device: torch.device) -> nn.Module:
        """The whole network on a device; tensors are read one by one, so that no second copy is ever whole."""
        module = self.on_meta().to_empty(device=device)
        fill(whole_shards(dict(module.named_parameters())), self.weights)
        self.fill_buffers(module)
        if self.finish:
            self.finish(module)
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


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name: those that an engine optimises and a checkpoint holds."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast frozen parameters to ``dtype``, and buffers too where nothing is trained; all else to fp32."""
    module.to(torch.float32 if trainable(module) else dtype)
    for p in module.parameters():
        if not p.requires_grad:
            p.data = p.data.to(dtype)
    return module


def whole_shards(parameters: Mapping[str, Tensor]) -> dict[str, Shard]:
    """Parameters that are whole on this rank, each as one shard."""
    return {name: Shard(p.shape, 0, p.data.view(-1)) for name, p in parameters.items()}
