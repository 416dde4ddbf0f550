"""Disk space for a run's checkpoints, from the networks' shapes."""

from ladd_dist.checkpoints.folders import GUARD, STEP_FOLDERS, checkpoints_of, is_pinned, pinned_by
from ladd_dist.config import Config
from ladd_dist.methods.base import STUDENT, optimizer
from ladd_dist.methods.registry import method_of

_FP32 = 4


def checkpoint_bytes(config: Config) -> int:
    """Tensors of one checkpoint: fp32 weights and moments of all that is trained, and the student's average."""
    method, total = method_of(config), 0
    for name, net in method.networks(config).trained.items():
        weights_and_moments = 1 + len(optimizer(config, method.OPTIMIZERS[name]).moments)
        tensors = weights_and_moments + (1 if name == STUDENT else 0)
        total += _FP32 * tensors * sum(p.numel() for p in net.parameters() if p.requires_grad)
    return total


def missing_room(config: Config) -> int:
    """Bytes that a run will still need: it keeps some checkpoints, and writes one before it drops another."""
    there = sum(not is_pinned(folder) for folder in checkpoints_of(config.run_dir).glob(STEP_FOLDERS))
    there += len(pinned_by(config.run_dir, GUARD))
    kept = config.train.keep_checkpoints + config.guard.pins(config.train.checkpoint_every)
    return checkpoint_bytes(config) * max(1, kept + 1 - there)
