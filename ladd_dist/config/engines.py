"""How the student is held and updated on the ranks of a job."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ladd_dist.config.section import NonNegativeFloat, NonNegativeInt, Probability, Section


class Fsdp2Config(Section):
    """PyTorch FSDP2; every transformer block is a unit of its own."""

    replicas: PositiveInt = 1
    """Copies of the sharded network (HSDP): above 1, ranks shard within a copy and average between copies."""
    forward_prefetch: NonNegativeInt = 0
    """Blocks gathered ahead in the forward pass; 0 leaves the order to FSDP, which overlaps one."""
    backward_prefetch: NonNegativeInt = 0
    """The same for the backward pass."""


class Zero3Config(Section):
    """DeepSpeed ZeRO-3."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, fp32 masters and moments, or the partitioned weights too."""


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then constant or cosine decay to ``final_lr_ratio * lr``."""

    lr: PositiveFloat
    state: Literal["fp32", "8bit"] = "fp32"
    """Precision of AdamW's moments; 8bit (torchao, blocks of 256) needs a GPU."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.0, 0.99], min_length=2, max_length=2)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_iterations: NonNegativeInt = 0
    decay: Literal["constant", "cosine"] = "constant"
    final_lr_ratio: Probability = 0.0
    clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
