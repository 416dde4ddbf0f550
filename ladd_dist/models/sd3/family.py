"""SD3 and SD3.5 by the family contract."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ladd_dist.config import KernelsConfig, MethodSection, Recomputation, TeacherConfig
from ladd_dist.errors import LaddError
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.family import Drawing, Family, Joined, TokenGrid
from ladd_dist.models.reduction import Reduced
from ladd_dist.models.sd3.attention import Attention, choose_attention, expects_fused, set_attention
from ladd_dist.models.sd3.configs import clip_tokens, load_config
from ladd_dist.models.sd3.export import arguments, usage, write_scheduler
from ladd_dist.models.sd3.fit import check_parts, check_shapes
from ladd_dist.models.sd3.layout import LAYOUT
from ladd_dist.models.sd3.networks import vae_on_meta
from ladd_dist.models.sd3.reduction import reduced
from ladd_dist.models.sd3.schedule import TeacherSchedule
from ladd_dist.models.sd3.single_file import original_names
from ladd_dist.models.sd3.text import TextEncoders, cut
from ladd_dist.models.sd3.transformer import Sd3Backbone, load_transformer, make_transformer, token_grid
from ladd_dist.models.sd3.vae import Vae, latent_factor

_INTERFACE = ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim")


class Sd3(Family):
    """Joint-attention transformers on the latents of a KL autoencoder, conditioned by two CLIPs and T5."""

    layout = LAYOUT

    def check(self, folder: str | Path) -> None:
        """See `check_shapes` and `check_parts`."""
        check_shapes(folder)
        check_parts(folder)

    def check_student(self, folder: str | Path, teacher: str | Path) -> None:
        """By the widths of latents and text."""
        student, wanted = load_config(folder), load_config(teacher)
        for key in _INTERFACE:
            if student[key] != wanted[key]:
                raise LaddError(
                    f"student.path={folder} has {key}={student[key]}, but the teacher has {wanted[key]}: "
                    "choose a student that takes the teacher's latents and text, or null for a copy of the teacher"
                )

    def latent_space(self, folder: str | Path) -> tuple[int, int]:
        """By the configs of transformer and VAE."""
        return load_config(folder)["in_channels"], latent_factor(folder)

    def token_grid(self, folder: str | Path, network: str) -> TokenGrid:
        """See `token_grid`."""
        return partial(token_grid, load_config(folder), network=network)

    def make(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, checkpointing: Recomputation = False
    ) -> Backbone:
        """See `Sd3Backbone`."""
        return Sd3Backbone(make_transformer(folder), dtype, checkpointing)

    def load(self, folder: str | Path, dtype: torch.dtype) -> Backbone:
        """By diffusers' own loader."""
        return Sd3Backbone(load_transformer(folder, dtype), dtype)

    def reduce(self, folder: str | Path, layers: Sequence[int] | None, heads: int | None) -> Reduced:
        """See `models.sd3.reduction`."""
        return reduced(folder, layers, heads)

    def choose_attention(
        self, folder: str | Path, kernels: KernelsConfig, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> tuple[Callable[[Backbone], None], str]:
        """See `models.sd3.attention`."""
        attention = choose_attention(kernels.attention, load_config(folder), device, dtype, compiled)
        return lambda backbone: set_attention(backbone.net, attention), str(attention)

    def plan_attention(
        self, folder: str | Path, kernels: KernelsConfig, gpu: str, dtype: torch.dtype, compiled: bool
    ) -> Callable[[Backbone], None]:
        """The fused kernel keeps no normalised copies of queries and keys, all others do."""
        fused = expects_fused(kernels.attention, load_config(folder), gpu, dtype, compiled)
        chosen = Attention("triton" if fused else "diffusers", "own", "planned")
        return lambda backbone: set_attention(backbone.net, chosen)

    def conditioner(self, teacher: TeacherConfig, dtype: torch.dtype, device: torch.device) -> TextEncoders:
        """See `TextEncoders`."""
        return TextEncoders(teacher.path, dtype, device, teacher.max_t5_tokens)

    def cut(self, teacher: TeacherConfig, prompts: Sequence[str]) -> dict[str, int]:
        """See `cut`."""
        return cut(teacher.path, teacher.max_t5_tokens, prompts)

    def context_shape(self, teacher: TeacherConfig) -> tuple[int, int]:
        """CLIP's tokens and then T5's, in T5's width."""
        return clip_tokens(teacher.path) + teacher.max_t5_tokens, load_config(teacher.path)["joint_attention_dim"]

    def schedule(self, folder: str | Path) -> TeacherSchedule:
        """See `TeacherSchedule`."""
        return TeacherSchedule(folder)

    def decoder(self, folder: str | Path, device: torch.device) -> Vae:
        """See `Vae`."""
        return Vae(folder, device)

    def decoder_on_meta(self, folder: str | Path) -> nn.Module:
        """The whole autoencoder: its encoder is loaded along."""
        return vae_on_meta(folder)

    def encoder(self, folder: str | Path, device: torch.device) -> Vae:
        """See `Vae`."""
        return Vae(folder, device)

    def write_sampler(self, folder: Path, method: MethodSection) -> None:
        """See `write_scheduler`."""
        write_scheduler(folder, method.times())

    def single_file(self, names: Collection[str]) -> Mapping[str, Joined]:
        """See `original_names`."""
        return original_names(names)

    def arguments(self, teacher: TeacherConfig) -> dict[str, Any]:
        """See `models.sd3.export`."""
        return arguments(teacher)

    def usage(self, teacher: TeacherConfig, method: MethodSection, drawing: Drawing) -> str:
        """See `models.sd3.export`."""
        return usage(teacher, method, drawing)


FAMILY = Sd3()
