"""The family contract: what is peculiar to a kind of teacher. Everything else asks the family of a folder.

A family is registered in `models.registry` under the ``_class_name`` of its transformer's config.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ladd_dist.config import KernelsConfig, MethodSection, Recomputation, TeacherConfig
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.errors import LaddError
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.reduction import Reduced

TokenGrid = Callable[[int, int], tuple[int, int]]
"""Rows and columns of the image tokens of a latent of ``height x width`` positions.

Raises:
    LaddError: if the network cannot take such a latent.
"""


@dataclass(frozen=True)
class Layout:
    """The components of a folder, each a folder of its own. ``transformer`` is always among the networks.

    Attributes:
        networks: components with weights -> their safetensors file without its ending.
        others: further components -> their config file.
        optional: networks that may be absent -> what is then not read, themselves included.
    """

    networks: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def configs(self) -> dict[str, str]:
        """Every component -> its config file."""
        return {**dict.fromkeys(self.networks, "config.json"), **self.others}


class Conditioner(Protocol):
    """Prompts to what the backbone is conditioned on; for a family without text, whatever it takes instead."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """Of each prompt; the empty one's is what guidance leads away from."""
        ...


class Schedule(Protocol):
    """The teacher's own sampling times."""

    settings: dict[str, Any]
    """What makes them, for a dataset's record."""

    def times(self, steps: int, tokens: int) -> list[float]:
        """Times of ``steps`` Euler steps over an image of ``tokens`` tokens, falling from 1, and the final 0."""
        ...


class Decoder(Protocol):
    """Latents to pictures."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` to pictures ``(B, 3, H, W)`` in [0, 1], fp32."""
        ...


class Encoder(Protocol):
    """Pictures to latents."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] to the latents ``(B, C, h, w)`` that the backbone takes, fp32."""
        ...


@dataclass(frozen=True)
class Drawing:
    """The picture that an export's model card has drawn.

    Attributes:
        folder: the export's name, as the call gives it.
        height: in pixels, as ``width``.
        guidance: 1 is none.
    """

    folder: str
    prompt: str
    height: int
    width: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Joined:
    """What a tensor of a single file is made of.

    Attributes:
        parts: tensors of a folder's transformer, one after another along the first dimension.
        swapped: whether the first half of that changes places with the second.
    """

    parts: tuple[str, ...]
    swapped: bool = False


class Family(ABC):
    """A kind of teacher. Every method that opens a folder raises LaddError for one that cannot be used.

    Attributes:
        layout: what a folder holds.
    """

    layout: Layout

    @abstractmethod
    def check(self, folder: str | Path) -> None:
        """Check that the folder's parts fit one another, by configs, tokenizers and headers of weights.

        `planning.networks` holds every family's transformer, a student's too, against its config.
        """

    @abstractmethod
    def check_student(self, folder: str | Path, teacher: str | Path) -> None:
        """Check that the student in ``folder`` takes the teacher's latents and conditioning."""

    @abstractmethod
    def latent_space(self, folder: str | Path) -> tuple[int, int]:
        """Channels of a latent, and pixels per position along each side."""

    @abstractmethod
    def token_grid(self, folder: str | Path, network: str) -> TokenGrid:
        """The transformer's grids; ``network`` says in errors whose they are, the teacher's or the student's."""

    @abstractmethod
    def make(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, checkpointing: Recomputation = False
    ) -> Backbone:
        """The backbone that computes in ``dtype``, untrained, on the default device, ``meta`` included."""

    @abstractmethod
    def load(self, folder: str | Path, dtype: torch.dtype) -> Backbone:
        """The backbone with the folder's weights in ``dtype``, in which it computes, on the CPU."""

    def reduce(self, folder: str | Path, layers: Sequence[int] | None, heads: int | None) -> Reduced:
        """A network made of some of the folder's blocks and of the first attention heads of each, for a student.

        A family that does not say how makes no such networks.

        Args:
            layers: the blocks, ascending; None is all.
            heads: how many of each block; None is all.

        Raises:
            LaddError: if the folder has no such blocks or heads.
        """
        raise LaddError(
            f"student.layers and student.heads: {folder} is of a family that makes no smaller networks: remove them"
        )

    @abstractmethod
    def choose_attention(
        self, folder: str | Path, kernels: KernelsConfig, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> tuple[Callable[[Backbone], None], str]:
        """What puts the attention to run into a backbone, and the choice and its reason in words for the log."""

    def plan_attention(
        self, folder: str | Path, kernels: KernelsConfig, gpu: str, dtype: torch.dtype, compiled: bool
    ) -> Callable[[Backbone], None]:
        """The same for a GPU that is not there, by PyTorch's name of it: for what shapes alone tell of a run.

        A family that does not say how has its attention counted as it is made.
        """
        return lambda backbone: None

    @abstractmethod
    def conditioner(self, teacher: TeacherConfig, dtype: torch.dtype, device: torch.device) -> Conditioner:
        """Load what encodes prompts."""

    def cut(self, teacher: TeacherConfig, prompts: Sequence[str]) -> Mapping[str, int]:
        """How many prompts are cut since they are longer than what encodes them takes, by that length in words.

        A family that does not say how long prompts may be has none cut.
        """
        return {}

    @abstractmethod
    def context_shape(self, teacher: TeacherConfig) -> tuple[int, int]:
        """Tokens L and channels D of `Conditioning.context`, from configs alone."""

    @abstractmethod
    def schedule(self, folder: str | Path) -> Schedule:
        """Read the teacher's schedule."""

    @abstractmethod
    def decoder(self, folder: str | Path, device: torch.device) -> Decoder:
        """Load what decodes latents."""

    @abstractmethod
    def decoder_on_meta(self, folder: str | Path) -> nn.Module:
        """What `decoder` keeps on its device, without storage, from configs alone."""

    @abstractmethod
    def encoder(self, folder: str | Path, device: torch.device) -> Encoder:
        """Load what encodes pictures."""

    @abstractmethod
    def write_sampler(self, folder: Path, method: MethodSection) -> None:
        """Have an export draw in few steps: ``folder`` is a copy of the teacher's, still with its schedule.

        Args:
            method: knows the times of the student's steps.
        """

    def single_file(self, names: Collection[str]) -> Mapping[str, Joined]:
        """The transformer's tensors as the family's single files name them, made of those that a folder has.

        Raises:
            LaddError: if the family has no such files.
        """
        raise LaddError("--format single: the teacher's family has no single files, choose --format diffusers")

    def arguments(self, teacher: TeacherConfig) -> dict[str, Any]:
        """What every call of an export must pass beside steps and guidance, since its pipeline's defaults are others.

        A family that does not say has no such arguments.
        """
        return {}

    @abstractmethod
    def usage(self, teacher: TeacherConfig, method: MethodSection, drawing: Drawing) -> str:
        """How an export is called, in Markdown for its model card, with code that makes ``drawing``.

        Args:
            method: knows the times of the student's steps, or that it draws as the teacher.
            drawing: its name and prompt may hold any characters.
        """
