"""Low-rank adapters on a network's linear layers (LoRA, arXiv 2106.09685), by peft.

An adapted layer gives ``base(x) + scale * up(down(x))``: ``down`` is drawn at the start and ``up`` is zero, so that
training begins at the base. Whether adapters count is said for each pass (see `engines.base`); peft has it as state
of its layers, which `adapters` sets for the length of a pass or of a block's recomputation.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ladd_dist.config import LoraConfig
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.errors import LaddError

_NAME = "default"
"""peft's for the only adapter of a network."""
_DOWN, _UP, _BASE = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight", ".base_layer."


class Source(Protocol):
    """Where a network's tensors are read from, range by range."""

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened tensor, on the CPU."""
        ...


def add_adapters(network: nn.Module, lora: LoraConfig) -> None:
    """Freeze a network and put trainable adapters on its linear layers, in place, without values of use.

    Raises:
        LaddError: if a target names no linear layer.
    """
    from peft import LoraConfig as PeftConfig  # late: it takes seconds to import
    from peft import inject_adapter_in_model

    network.requires_grad_(False)
    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.scale * lora.rank, "init_lora_weights": False}
    inject_adapter_in_model(PeftConfig(target_modules=_targets(network, lora), **settings), network, _NAME)


def _targets(network: nn.Module, lora: LoraConfig) -> list[str]:
    # By exact type: layers of a subclass may be computed by others, from their weights.
    linear = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    for target in lora.targets or ():
        if not any(_ends(name, target) for name in linear):
            raise LaddError(
                f"student.lora.targets: {target} is the end of no linear layer's name, such as {linear[-1]}"
            )
    return [name for name in linear if lora.targets is None or any(_ends(name, target) for target in lora.targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


@contextmanager
def adapters(module: nn.Module, count: bool) -> Iterator[None]:
    """Have the adapters in a module count, or not, inside the block."""
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    before = [layer.disable_adapters for layer in layers]
    try:
        _switch(layers, [not count] * len(layers))
        yield
    finally:
        _switch(layers, before)


def _switch(layers: list[Any], disabled: list[bool]) -> None:
    for layer, off in zip(layers, disabled, strict=True):
        layer._disable_adapters = off  # not by `enable_adapters`, which also changes what is trained


def adapters_count(module: nn.Module) -> bool:
    """Whether the adapters in a module count now; True if it has none."""
    return not any(getattr(layer, "disable_adapters", False) for layer in module.modules())


class AdaptedWeights:
    """First values of an adapted network: adapters drawn by their names, all else read from the base's source.

    Args:
        network: the adapted one, on the meta device, with the base's names.
        base: has the base's tensors by their names without adapters.
    """

    def __init__(self, network: nn.Module, base: Source, seed: int) -> None:
        self._shapes: Mapping[str, torch.Size] = {n: p.shape for n, p in network.named_parameters() if is_adapter(n)}
        self._base, self._seed = base, seed

    def read(self, name: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened tensor, on the CPU."""
        if name not in self._shapes:
            return self._base.read(base_name(name), offset, length)
        if name.endswith(_UP):
            return torch.zeros(length)
        return self._draw(name).flatten()[offset : offset + length]

    def _draw(self, name: str) -> Tensor:
        """As peft does (`kaiming_uniform_` with a = sqrt 5), whatever else is drawn."""
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(image_seed(self._seed, f"adapter {name}", 0))
        return (torch.rand(shape, generator=generator) * 2 - 1) / shape[1] ** 0.5


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return name.endswith((_DOWN, _UP))


def base_name(name: str) -> str:
    """What a parameter of an adapted network is called in the base alone."""
    return name.replace(_BASE, ".")


def layer_of(name: str) -> str:
    """The base's weight that an adapter's parameter belongs to, by its name in the base alone."""
    return name.removesuffix(_DOWN).removesuffix(_UP) + ".weight"
