"""AdamW as every engine uses it: fused, or with 8-bit moments; over flat shards; skipped when not finite.

Where ``betas[0]`` is 0, as adversarial training mostly has it, the first moment is the gradient itself. None is kept
then: 4 bytes a weight less in memory and in checkpoints than PyTorch's AdamW takes, for the same update.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladd_dist.config import MomentKind, OptimizerConfig
from ladd_dist.engines.base import Shard, StateKind
from ladd_dist.engines.eight_bit import EightBitAdamW, quantizable


class _AdamW(Protocol):
    """Of flat tensors by name, in place."""

    updates: int

    def step(self, gradients: Mapping[str, Tensor], lr: float, clip: Tensor, finite: Tensor) -> None:
        """One update with ``clip`` times the gradients; none if ``finite`` is false. Both are 0-d."""
        ...

    def moment(self, kind: MomentKind) -> dict[str, Tensor]:
        """Live; nothing if it is not kept."""
        ...


class ShardedAdamW:
    """AdamW on this rank's shards, in place; gradients are clipped by their norm over all ranks' shards.

    Args:
        shards: the master weights.
        group: the ranks that together hold one whole network; None if this rank does.
    """

    def __init__(
        self, shards: Mapping[str, Shard], config: OptimizerConfig, group: dist.ProcessGroup | None = None
    ) -> None:
        self._shards = dict(shards)
        self._group, self._clip_norm = group, config.clip_norm
        eight_bit, fp32 = dict[str, Tensor](), dict[str, Tensor]()
        for name, shard in shards.items():
            fits = config.state == "8bit" and quantizable(shard.local.numel())
            (eight_bit if fits else fp32)[name] = shard.local
        self._parts: list[_AdamW] = [FusedAdamW(fp32, config)] if fp32 else []
        self._parts += [EightBitAdamW(eight_bit, config)] if eight_bit else []

    def step(self, gradients: Mapping[str, Tensor], lr: float) -> Tensor:
        """One update with this rank's flat gradients, which may be written over; none if their norm is not finite.

        Returns:
            The norm before clipping (0-d, fp32).
        """
        norm = self._norm(list(gradients.values()))
        clip, finite = (self._clip_norm / (norm + 1e-6)).clamp(max=1.0), norm.isfinite()
        for part in self._parts:
            part.step(gradients, lr, clip, finite)
        return norm

    def _norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm(gradients)
        if self._group is not None:
            norm = norm.square()
            dist.all_reduce(norm, group=self._group)
            norm = norm.sqrt()
        return norm

    def shards(self, kind: StateKind) -> dict[str, Shard]:
        """The weights or one of the moments, live; nothing of a moment that is not kept."""
        if kind == "param":
            return self._shards
        moment = {name: local for part in self._parts for name, local in part.moment(kind).items()}
        return {n: Shard(s.shape, s.offset, moment[n]) for n, s in self._shards.items() if n in moment}

    @property
    def updates(self) -> int:
        """Updates done so far."""
        return max((part.updates for part in self._parts), default=0)

    @updates.setter
    def updates(self, count: int) -> None:
        for part in self._parts:
            part.updates = count


class FusedAdamW:
    """PyTorch's, in one fused kernel, which clips and looks at the flag on the device: no synchronisation."""

    def __init__(self, weights: Mapping[str, Tensor], config: OptimizerConfig) -> None:
        self._weights = {name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()}
        self._optimizer: Any = adamw(self._weights.values(), config)
        allocate_state(self._optimizer, self._weights.values(), config)

    def step(self, gradients: Mapping[str, Tensor], lr: float, clip: Tensor, finite: Tensor) -> None:
        """One update with ``clip`` times the gradients; none if ``finite`` is false. Both are 0-d."""
        for name, weight in self._weights.items():
            weight.grad = gradients.get(name)
        set_lr(self._optimizer, lr)
        self._optimizer.grad_scale, self._optimizer.found_inf = 1 / clip, (~finite).float()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def moment(self, kind: MomentKind) -> dict[str, Tensor]:
        """Live; nothing if it is not kept."""
        states = ((name, self._optimizer.state[weight]) for name, weight in self._weights.items())
        return {name: state[kind] for name, state in states if kind in state}

    @property
    def updates(self) -> int:
        """Updates done so far."""
        return state_updates(self._optimizer)

    @updates.setter
    def updates(self, count: int) -> None:
        set_state_updates(self._optimizer, count)


def adamw(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in one fused kernel per update; whatever keeps first moments, it keeps those alone that `config` has."""
    b1, b2 = config.betas
    optimizer = torch.optim.AdamW(
        parameters, config.lr, (b1, b2), config.eps, weight_decay=config.weight_decay, fused=True
    )
    if "exp_avg" not in config.moments:
        optimizer.register_step_pre_hook(_lend_gradients)
        optimizer.register_step_post_hook(_forget_gradients)
    return optimizer


def _lend_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Let gradients be the first moments: b1 g + (1 - b1) g is g, written where it was read."""
    for p, state in optimizer.state.items():
        state["exp_avg"] = p.grad


def _forget_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for state in optimizer.state.values():
        del state["exp_avg"]


def allocate_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], config: OptimizerConfig) -> None:
    """Give AdamW its state before the first update, so that a checkpoint can be loaded into it."""
    for p in parameters:
        moments = {kind: torch.zeros_like(p) for kind in config.moments}
        optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_updates(optimizer: torch.optim.Optimizer) -> int:
    """AdamW's update counter."""
    return max(int(state["step"]) for state in optimizer.state.values())


def set_state_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Set AdamW's update counters."""
    for state in optimizer.state.values():
        state["step"].fill_(count)
