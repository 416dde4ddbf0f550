"""The engine contract: what the LADD step, the EMA and the checkpoint may ask of a network under training.

An engine holds fp32 master weights and AdamW state, whole or sharded, and computes in the configured
precision. Its state is offered as `Shard`s, contiguous ranges of flattened tensors, so that EMA and checkpoint
are the same code for every engine, and one engine's checkpoint can be read by any other at any world size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig

StateKind = Literal["param", "exp_avg", "exp_avg_sq"]
STATE_KINDS: tuple[StateKind, ...] = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Shard:
    """This rank's range of one flattened fp32 tensor.

    ``local`` is a live 1-D view of the engine's own storage: writing to it changes the network (call
    `Engine.publish` afterwards). It is the range ``[offset, offset + local.numel())`` of a tensor that has
    ``shape`` when whole.
    """

    shape: torch.Size
    offset: int
    local: Tensor


class Engine(ABC):
    """One trainable network on this rank."""

    module: nn.Module
    replicated: bool = False
    """Whether every rank holds the whole state, so that one rank's copy is all there is to save."""

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass; the engine owns the graph."""
        return self.module(*inputs)

    @abstractmethod
    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of ``loss``, averaged over ranks. ``last`` marks the final micro-batch."""

    @abstractmethod
    def step(self, lr: float) -> Tensor:
        """Clip, update the weights and clear the gradients. Returns the norm before clipping (0-d, fp32)."""

    @abstractmethod
    def shards(self, kind: StateKind = "param") -> dict[str, Shard]:
        """This rank's part of the fp32 master weights or of AdamW's moments, by parameter name."""

    @abstractmethod
    def set_updates(self, count: int) -> None:
        """Set the number of updates done so far, which AdamW's bias correction depends on."""

    def publish(self) -> None:  # noqa: B027 - most engines compute with the masters themselves
        """Make weights written through `shards` the ones that the next forward pass uses."""


def adamw(parameters: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW as every engine uses it: one fused kernel per update."""
    b1, b2 = config.betas
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=(b1, b2), eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def allocate_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Give AdamW its state before the first update, so that a checkpoint can be loaded into it."""
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_state_step(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Set AdamW's update counters."""
    for state in optimizer.state.values():
        state["step"].fill_(count)
