"""AdamW as every engine uses it: fused, or with 8-bit moments; over flat shards; skipped when not finite."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladd_dist.config import OptimizerConfig
from ladd_dist.engines.base import Shard, StateKind


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
        self._weights = {name: nn.Parameter(shard.local, requires_grad=False) for name, shard in shards.items()}
        self._group, self._clip_norm = group, config.clip_norm
        self._optimizer = adamw(self._weights.values(), config)
        allocate_state(self._optimizer, self._weights.values())

    def step(self, gradients: Mapping[str, Tensor], lr: float) -> Tensor:
        """One update with this rank's flat gradients, which are clipped in place; none if their norm is not finite.

        Returns:
            The norm before clipping (0-d, fp32).
        """
        values = list(gradients.values())
        norm = self._norm(values)
        torch._foreach_mul_(values, (self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for name, gradient in gradients.items():
            self._weights[name].grad = gradient
        set_lr(self._optimizer, lr)
        self._update_if_finite(norm)
        self._optimizer.zero_grad()
        return norm

    def _norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm(gradients)
        if self._group is not None:
            norm = norm.square()
            dist.all_reduce(norm, group=self._group)
            norm = norm.sqrt()
        return norm

    def _update_if_finite(self, norm: Tensor) -> None:
        if self._optimizer.defaults.get("fused"):
            # The fused kernel looks at the flag on the device: no synchronisation.
            self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self._optimizer.step()
        elif bool(norm.isfinite()):
            self._optimizer.step()

    def shards(self, kind: StateKind) -> dict[str, Shard]:
        """The weights or one of the moments, live."""
        if kind == "param":
            return self._shards
        return {
            name: Shard(shard.shape, shard.offset, self._optimizer.state[self._weights[name]][kind])
            for name, shard in self._shards.items()
        }

    @property
    def updates(self) -> int:
        """Updates done so far."""
        return state_updates(self._optimizer)

    @updates.setter
    def updates(self, count: int) -> None:
        set_state_updates(self._optimizer, count)


def adamw(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with fp32 moments in one fused kernel per update, or with block-wise 8-bit ones (torchao)."""
    b1, b2 = config.betas
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (b1, b2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.state == "8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)


def allocate_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Give AdamW its state before the first update, so that a checkpoint can be loaded into it."""
    quantized = getattr(optimizer, "_new_buffer", None)
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device="cpu" if quantized else p.device),
            "exp_avg": quantized(p, True) if quantized else torch.zeros_like(p),
            "exp_avg_sq": quantized(p, False) if quantized else torch.zeros_like(p),
        }


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def state_updates(optimizer: torch.optim.Optimizer) -> int:
    """AdamW's update counter."""
    return max(int(state["step"]) for state in optimizer.state.values())


def set_state_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Set AdamW's update counters."""
    for state in optimizer.state.values():
        state["step"].fill_(count)
