"""The loop, what it reads and what it records."""

from typing import Literal

from pydantic import model_validator

from ladd_dist.config.section import Section
from ladd_dist.config.values import Count, CountOrZero, Decay, PathName, Seconds, SecondsOrZero, Seed, WorkerCount


class TrainConfig(Section):
    """The loop."""

    iterations: Count
    global_batch: Count
    """Samples per iteration over all ranks and micro-batches."""
    micro_batch: Count | None = None
    """Samples per rank and forward pass; null takes the rank's whole share of the global batch."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; trainable parameters and optimizer state are fp32 always."""
    ema_decay: Decay = 0.999
    ema_device: Literal["same", "cpu"] = "same"
    """Keep the averaged weights beside the student's, or in host memory at the cost of a copy per iteration."""
    max_skipped: Count = 20
    """Iterations in a row that may be skipped for a non-finite loss or gradient before the run stops."""
    log_every: Count = 10
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    preview_every: CountOrZero = 0
    """Iterations between picture sheets of the student; 0 draws none."""
    evaluate_every: CountOrZero = 0
    """Iterations between evaluations of the student's averaged weights, as `evaluation` says; 0 makes none. What it
    costs is in docs/evaluation.md."""
    hang_timeout: Seconds = 900.0
    """Seconds without progress on any rank after which the job ends, naming who is behind. Must exceed the longest
    phase: loading the networks, writing a checkpoint."""

    @model_validator(mode="after")
    def _divides(self) -> "TrainConfig":
        if self.micro_batch and self.global_batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} must divide global_batch={self.global_batch}")
        if self.checkpoint_every % self.log_every:
            # Or the first row after a resume would average fewer iterations than in an uninterrupted run.
            raise ValueError(f"log_every={self.log_every} must divide checkpoint_every={self.checkpoint_every}")
        return self


class DataConfig(Section):
    """Where the synthetic latents are written and read."""

    path: PathName
    shuffle_seed: Seed = 0
    workers: WorkerCount = 0
    """Loader processes per rank."""


class TrackingConfig(Section):
    """``metrics.jsonl`` is the record; a page shows it, and W&B mirrors it when asked to."""

    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "ladd_dist"
    page_every: SecondsOrZero = 30.0
    """Seconds between two writings of ``run_dir/report/index.html`` while the run trains; 0 writes none."""


class ProfileConfig(Section):
    """A torch.profiler trace per rank, of the configured iterations or, at any time, on SIGUSR2."""

    start: CountOrZero | None = None
    """First iteration of the trace; null traces on SIGUSR2 alone."""
    iterations: Count = 3
