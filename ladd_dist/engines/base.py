"""The engine contract: what a training step, the EMA and the checkpoint may ask of a network under training.

An engine holds fp32 master weights and AdamW's state of the trainable parameters, whole or sharded, and computes in
the configured precision; parameters that do not require a gradient are kept in that precision only. Its state is
offered as `Shard`s, contiguous ranges of flattened tensors, so that start, EMA and checkpoint are the same code for
every engine, and one engine's checkpoint can be read by any other at any world size.

What differs from one pass to another, such as whether an adapter counts, is an argument of the forward pass and never
state of the module. Activation checkpointing runs a block again in the backward pass, with the arguments of its
forward pass but with whatever state the module has by then: after another pass, another network than the loss saw.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ladd_dist.config import MomentKind

StateKind = Literal["param", MomentKind]
"""fp32 master weights, and AdamW's two moments by PyTorch's names."""
STATE_KINDS: tuple[StateKind, ...] = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Shard:
    """This rank's range of one flattened tensor.

    ``local`` is a live 1-D view of the engine's own storage, fp32 or a quantized stand-in for it that ``copy_``
    converts from and to: writing to it changes the network (call `Engine.publish` afterwards). It is the range
    ``[offset, offset + local.numel())`` of a tensor that has ``shape`` when whole.
    """

    shape: torch.Size
    offset: int
    local: Tensor


class TensorSource(Protocol):
    """Where tensors are read from, range by range: a folder of safetensors or a checkpoint."""

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened tensor, on the CPU."""
        ...


@torch.no_grad()
def fill(shards: Mapping[str, Shard], source: TensorSource) -> None:
    """Read each shard's own range into it, one after the other: nothing is ever whole in between."""
    for name, shard in shards.items():
        shard.local.copy_(source.read(name, shard.offset, shard.local.numel()))


class Engine(ABC):
    """One network under training on this rank, some or all of whose parameters are trainable."""

    module: nn.Module
    owner: bool = True
    """Whether this rank's shards are the ones to save; the others hold copies of another rank's."""
    rate_factor: float = 1.0
    """What its scheduled learning rate is multiplied by, see `methods.base.rate`; 1 until a guard lowers it."""
    before_update: Callable[[], None] | None = None
    """Called before the weights change: somebody may still be reading them beside the passes."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Forward pass; the engine owns the graph. All that tells it from other passes is in its arguments."""
        return self.module(*inputs, **options)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of ``loss``, averaged over ranks. ``last`` marks the final micro-batch."""
        loss.backward()

    def step(self, lr: float) -> Tensor:
        """`update`, once nobody reads the weights any more."""
        if self.before_update is not None:
            self.before_update()
        return self.update(lr)

    @abstractmethod
    def update(self, lr: float) -> Tensor:
        """Clip, update the weights and clear the gradients.

        Returns:
            The gradient's norm over all ranks before clipping (0-d, fp32, on the rank's device). Where it is not
            finite, on every rank alike, neither weights nor AdamW's state have changed.
        """

    @abstractmethod
    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        """This rank's part of the fp32 master weights or of AdamW's moments, by name of trainable parameter.

        Nothing of a moment that is not kept, see `OptimizerConfig.moments`.
        """

    @property
    @abstractmethod
    def updates(self) -> int:
        """Updates done so far, which AdamW's bias correction depends on; skipped ones do not count."""

    @updates.setter
    @abstractmethod
    def updates(self, count: int) -> None: ...

    def publish(self) -> None:  # noqa: B027 - most engines compute with the masters themselves
        """Make weights written through `shards` the ones that the next forward pass uses."""
