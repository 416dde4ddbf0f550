"""Shared memory in which loader processes hand their batches over."""

from pathlib import Path

from ladd_dist.config import Config
from ladd_dist.data.damage import AGAIN, named
from ladd_dist.data.index import Index
from ladd_dist.data.mds import INDEX, Manifest
from ladd_dist.methods.registry import method_of

_PREFETCH = 2
"""Batches that a DataLoader keeps ready per process, by default."""
_STREAMING = 4_000_000
"""A run with one loader process got by on 4 MiB (`tests/test_cluster.py`), most of it Streaming's own."""
_WIDENED = 2
"""Latents and conditioning lie on disk as bf16 and are handed over as fp32."""


def handed_over(config: Config, ranks: int) -> int:
    """Bytes of this rank's batches that may be under way at once, and of what Streaming keeps there.

    Raises:
        LaddError: if an index cannot be read.
    """
    if not config.data.workers:
        return _STREAMING
    root, share = Path(config.data.path), config.train.global_batch // ranks
    sample = max(_sample_bytes(root / bucket / INDEX) for bucket in Manifest.read(root).counts)
    samples = share * (2 if method_of(config).mismatched_prompts(config) else 1)
    return _STREAMING + config.data.workers * _PREFETCH * samples * sample * _WIDENED


def _sample_bytes(index: Path) -> int:
    with named(index, AGAIN):
        shards = Index.model_validate_json(index.read_bytes()).shards
    return max((sum(size or 0 for size in shard.column_sizes) for shard in shards), default=0)
