"""Disk space for a run's checkpoints, from the networks' shapes."""

from ladd_dist.checkpoints.folders import GUARD, STEP_FOLDERS, checkpoints_of, is_pinned, pinned_by
from ladd_dist.config import Config
from ladd_dist.engines.ranges import whole
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.memory import checkpoint_copy


def checkpoint_bytes(config: Config) -> int:
    """Tensors of one checkpoint: fp32 weights and moments of all that is trained, and the student's average."""
    return checkpoint_copy(config, method_of(config).networks(config), whole)


def missing_room(config: Config) -> int:
    """Bytes that a run will still need: it keeps some checkpoints, and writes one before it drops another."""
    there = sum(not is_pinned(folder) for folder in checkpoints_of(config.run_dir).glob(STEP_FOLDERS))
    there += len(pinned_by(config.run_dir, GUARD))
    return checkpoint_bytes(config) * max(1, config.most_checkpoints - there)
