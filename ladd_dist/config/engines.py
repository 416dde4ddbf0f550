"""How the student is held and updated on the ranks of a job."""

from typing import Literal

from pydantic import Field

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, Decay, NonNegativeNumber, PositiveNumber, Probability


class Fsdp2Config(Section):
    """PyTorch FSDP2; every transformer block is a unit of its own."""

    replicas: Count = 1
    """Copies of the sharded network (HSDP): above 1, ranks shard within a copy and average between copies."""
    forward_prefetch: CountOrZero = 0
    """Blocks gathered ahead in the forward pass; 0 leaves the order to FSDP, which overlaps one."""
    backward_prefetch: CountOrZero = 0
    """The same for the backward pass."""


class Zero3Config(Section):
    """DeepSpeed ZeRO-3."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, fp32 masters and moments, or the partitioned weights too."""


MomentKind = Literal["exp_avg", "exp_avg_sq"]
"""AdamW's first and second, by PyTorch's names."""


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then constant or cosine decay to ``final_lr_ratio * lr``."""

    lr: PositiveNumber
    state: Literal["fp32", "8bit"] = "fp32"
    """Precision of AdamW's moments; 8bit (torchao, blocks of 256) needs a GPU."""
    betas: list[Decay] = Field(default=[0.0, 0.99], min_length=2, max_length=2)
    """Of the first and the second moment. With 0 the first is the gradient itself, and is not kept."""
    eps: PositiveNumber = 1e-8
    weight_decay: NonNegativeNumber = 0.0
    warmup_iterations: CountOrZero = 0
    decay: Literal["constant", "cosine"] = "constant"
    final_lr_ratio: Probability = 0.0
    clip_norm: PositiveNumber = 1.0
    """Gradients are scaled down to this global norm."""

    @property
    def moments(self) -> tuple[MomentKind, ...]:
        """Those that are kept from one update to the next."""
        return ("exp_avg", "exp_avg_sq") if self.betas[0] else ("exp_avg_sq",)
