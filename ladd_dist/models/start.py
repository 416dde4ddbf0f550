"""What the student is before it is trained: the one place that knows how ``student`` and ``teacher.path`` make it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from ladd_dist.config import Config, LoraConfig, Recomputation
from ladd_dist.models.adapters import AdaptedWeights
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.family import Family
from ladd_dist.models.files import in_one_line
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.folder import component
from ladd_dist.models.reduction import Reduced
from ladd_dist.models.registry import family_of
from ladd_dist.models.weights import FolderWeights, ReducedWeights


@dataclass(frozen=True)
class Start:
    """The network of a folder, or one made of some of its layers and heads.

    Attributes:
        folder: the student's or, if it has none of its own, the teacher's.
        layers: its blocks that are kept; None is all.
        heads: how many heads of each block are kept; None is all.
        lora: adapters on it, which are then all that is trained.
        seed: draws the adapters.
    """

    folder: str
    layers: tuple[int, ...] | None = None
    heads: int | None = None
    lora: LoraConfig | None = None
    seed: int = 0

    @staticmethod
    def of(config: Config) -> "Start":
        """The configured student's."""
        student = config.student
        layers = None if student.layers is None else tuple(student.layers)
        return Start(student.path or config.teacher.path, layers, student.heads, student.lora, config.seed)

    @staticmethod
    def fingerprint(config: Config) -> str | None:
        """Of the configured network that adapters are trained on; None if it is the teacher, or for a whole student.

        Raises:
            LaddError: as `models.fingerprint`.
        """
        student = config.student
        return fingerprint(student.path) if student.lora and student.path else None

    @property
    def family(self) -> Family:
        """The folder's."""
        return family_of(self.folder)

    @property
    def kept(self) -> str:
        """Which layers and heads, in words; empty if all of them."""
        layers = [f"layers {', '.join(map(str, self.layers))}"] if self.layers else []
        heads = [f"the first {self.heads} attention heads"] if self.heads else []
        return " and ".join(layers + heads)

    def make(self, dtype: torch.dtype = torch.float32, checkpointing: Recomputation = False) -> Backbone:
        """The backbone, untrained; see `Family.make`.

        Raises:
            LaddError: if the folder has no such layers or heads, its family makes no smaller networks, or ``lora``
                names no layer of it.
        """
        if self._reduced:
            backbone = self._reduced.make(dtype, checkpointing)
        else:
            backbone = self.family.make(self.folder, dtype, checkpointing)
        return self._adapted(backbone)

    def on_meta(self) -> Backbone:
        """The backbone without storage: shapes and parameter counts only.

        Raises:
            LaddError: as `make`, or if the folder's config makes no network.
        """
        config = component(self.folder, "transformer") / "config.json"
        with in_one_line(f"{config} makes no network"), torch.device("meta"):
            return self.make()

    def weights(self) -> FolderWeights | ReducedWeights | AdaptedWeights:
        """What it starts with, range by range."""
        folder = FolderWeights(self.folder)
        base = ReducedWeights(folder, self._reduced.parts) if self._reduced else folder
        return AdaptedWeights(self.on_meta(), base, self.seed) if self.lora else base

    def load(self, dtype: torch.dtype) -> Backbone:
        """The backbone with its weights in ``dtype``, in which it computes, on the CPU; see `Family.load`."""
        if not self._reduced and not self.lora:
            return self.family.load(self.folder, dtype)
        weights = self.weights()
        with torch.device("meta"):
            backbone = self.make(dtype).to(dtype)
        for name, tensor in _tensors(backbone.to_empty(device="cpu")):
            tensor.data.copy_(weights.read(name, 0, tensor.numel()).view(tensor.shape))
        return backbone

    def _adapted(self, backbone: Backbone) -> Backbone:
        if self.lora:
            backbone.add_adapters(self.lora)
        return backbone

    @cached_property
    def _reduced(self) -> Reduced | None:
        if self.layers is None and self.heads is None:
            return None
        return self.family.reduce(self.folder, self.layers, self.heads)


def _tensors(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    return chain(backbone.named_parameters(), backbone.named_buffers())
