"""The velocity network as engines and methods know it, whatever the family: with feature taps after its blocks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ladd_dist.config import LoraConfig, Recomputation
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.models.adapters import adapters, add_adapters
from ladd_dist.models.float8 import to_float8
from ladd_dist.models.recomputation import recompute_when_compiled, run_recomputed


class Backbone(nn.Module, ABC):
    """A transformer that predicts velocity and returns the image tokens after chosen blocks.

    Features come back from ``forward`` instead of being stashed by hooks: activation checkpointing and sharding stay
    correct, and a pass that only feeds the heads stops after the last tapped block.

    Args:
        net: the network; its parameters are this module's, under ``net.`` and their names in the folder's files.
        compute_dtype: dtype of activations.
        activation_checkpointing: recompute blocks in the backward pass; ``selective`` all of them but what
            `models.recomputation` keeps. Set before blocks are compiled.
    """

    def __init__(
        self, net: Any, compute_dtype: torch.dtype = torch.float32, activation_checkpointing: Recomputation = False
    ) -> None:
        super().__init__()
        self.net = net
        self.compute_dtype = compute_dtype
        self.activation_checkpointing = activation_checkpointing
        self.adapted = False

    @property
    def activation_checkpointing(self) -> Recomputation:
        """What is recomputed."""
        return self._recomputation

    @activation_checkpointing.setter
    def activation_checkpointing(self, what: Recomputation) -> None:
        self._recomputation = what
        for block in self.wrap_points():
            recompute_when_compiled(block, what == "selective")

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        taps: tuple[int, ...] | None = None,
        consume: Callable[[Tensor], None] | None = None,
        adapter: bool = True,
    ) -> Tensor | list[Tensor]:
        """Velocity, or the features of tapped blocks.

        Args:
            x_t: noised latents ``(B, C, H, W)``.
            t: noise levels ``(B,)`` in [0, 1].
            cond: what the family's `Conditioner` makes of prompts.
            taps: indices of blocks, ascending. Given, the pass ends after the last of them and returns
                features instead of velocity.
            consume: gets each tapped block's features as they appear; this pass then keeps and returns none.
            adapter: whether the network's adapters count, if it has any; without them it is the base.

        Returns:
            Velocity ``(B, C, H, W)`` in fp32, or one ``(B, N, D)`` per tap in ``compute_dtype``, with N the
            row-major token grid.
        """
        if not self.adapted:
            return self.compute(x_t, t, cond, taps, consume)
        with adapters(self, adapter):
            return self.compute(x_t, t, cond, taps, consume)

    @abstractmethod
    def compute(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        taps: tuple[int, ...] | None,
        consume: Callable[[Tensor], None] | None,
    ) -> Tensor | list[Tensor]:
        """The pass itself, see `forward`. It runs its blocks by `run_block`."""

    def run_block(self, block: nn.Module, *inputs: Tensor) -> Any:
        """What a block makes of its inputs; with activation checkpointing it runs again in the backward pass."""
        if not torch.is_grad_enabled():
            return block(*inputs)
        return run_recomputed(block, self.activation_checkpointing, self.adapted, *inputs)

    def add_adapters(self, lora: LoraConfig) -> None:
        """Freeze the network and put trainable adapters on it, in place, see `models.adapters`.

        Raises:
            LaddError: if ``lora.targets`` names no layer of it.
        """
        add_adapters(self.net, lora)
        self.adapted = True

    @abstractmethod
    def wrap_points(self) -> list[nn.Module]:
        """The blocks: what an engine shards and gathers one by one."""

    def token_layers(self) -> list[str]:
        """Names of the linear layers of blocks that every token passes, which are those that may be in float8.

        They are nearly all of a pass's arithmetic. What runs once per sample, such as modulation, is not among them:
        it costs nothing to leave exact, and scales all tokens alike. None by default.
        """
        return []

    def to_float8(self, of: Literal["teacher", "student"]) -> None:
        """Have the layers of `token_layers` multiply in 8 bits, in place, see `models.float8.to_float8`.

        Raises:
            LaddError: if it has none, or one is of a width that the products do not take.
        """
        to_float8(self, self.token_layers(), of)

    @abstractmethod
    def truncate(self, last_block: int) -> None:
        """Remove the blocks after ``last_block`` and the output layers, in place: a feature pass does not run them.

        The backbone gives features and no velocity from now on. Sharded, they would be gathered for nothing.
        """

    @abstractmethod
    def save_config(self, folder: Path) -> None:
        """Write the config as the family's folders hold it; ``folder`` may exist already."""

    def file_tensors(self) -> dict[str, tuple[str, Tensor]]:
        """What the family's files hold, by its name there: the name in this module, and parameter or buffer.

        A tensor of several names is there by its first.
        """
        found: dict[int, tuple[str, tuple[str, Tensor]]] = {}
        for key, tensor in self.net.state_dict(keep_vars=True).items():
            found.setdefault(id(tensor), (key, (f"net.{key}", tensor)))
        return dict(found.values())

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels D of the image tokens."""

    @property
    @abstractmethod
    def pooled_width(self) -> int:
        """Channels P of the pooled conditioning."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.wrap_points())


class FeatureGroups:
    """A ``consume`` for `Backbone.forward` that hands features on in groups of ``size`` and keeps none of them.

    Args:
        total: tapped blocks of the pass; the last group is smaller where ``size`` does not divide it.
        consume: gets the index of a group's first tap, and the group's features.
    """

    def __init__(self, size: int, total: int, consume: Callable[[int, list[Tensor]], None]) -> None:
        self._size, self._total, self._consume = size, total, consume
        self._seen, self._held = 0, list[Tensor]()

    def __call__(self, features: Tensor) -> None:
        """Take the features ``(B, N, D)`` of the next tapped block; a full group is handed on at once."""
        self._held.append(features)
        self._seen += 1
        if len(self._held) == self._size or self._seen == self._total:
            group, self._held = self._held, []
            self._consume(self._seen - len(group), group)
