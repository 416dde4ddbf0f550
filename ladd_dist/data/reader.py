"""Endless batches of synthetic latents, in an order that is a function of seed and position alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from streaming import Stream, StreamingDataset
from streaming.base import dataset
from streaming.base.world import World as StreamingWorld
from torch.utils.data import DataLoader

from ladd_dist.config import Config
from ladd_dist.data.mds import Manifest, collate
from ladd_dist.data.shared_memory import take_number
from ladd_dist.diffusion.batch import Batch
from ladd_dist.distributed.world import World
from ladd_dist.supervision.signals import ignore_stop

# Fixed, so that the sample order does not depend on the number of nodes.
_CANONICAL_NODES = 1

dataset.get_shm_prefix = take_number  # whose own lets two jobs on a node collide


class LatentReader:
    """Reads this rank's share of each global batch; a global batch holds one bucket, the same on all ranks.

    Args:
        config: the run's configuration; its dataset must have passed `check.check_dataset`.
    """

    def __init__(self, config: Config, manifest: Manifest, world: World) -> None:
        root = Path(config.data.path)
        self._micro_batch = config.micro_batch(world.size)
        self._global_batch = config.train.global_batch
        self._dataset = StreamingDataset(
            streams=[Stream(local=str(root / bucket)) for bucket in manifest.counts],
            batch_size=self._global_batch // world.size,
            batching_method="per_stream",
            shuffle=True,
            shuffle_seed=config.data.shuffle_seed,
            num_canonical_nodes=_CANONICAL_NODES,
        )
        self._workers = config.data.workers
        self._epoch, self._batches = 0, 0

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one iteration after the other, epoch after epoch."""
        self._seek()
        if self._workers:
            atexit.register(_end_loader_processes)
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            # The whole share at once: loader processes take turns, each with global batches of its own.
            batch_size=self._dataset.batch_size,
            num_workers=self._workers,
            collate_fn=partial(_micro_batches, size=self._micro_batch),
            persistent_workers=self._workers > 0,
            worker_init_fn=_keep_serving,
            drop_last=True,
        )
        while True:
            for micro in loader:
                self._batches += 1
                yield micro
            self._epoch, self._batches = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Position behind the last iteration that was yielded."""
        return {"epoch": self._epoch, "samples": self._batches * self._global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position. Call before iterating."""
        self._epoch, self._batches = state["epoch"], state["samples"] // self._global_batch

    def _seek(self) -> None:
        """Tell Streaming the position, in shared memory.

        Also the start's: it would go on from a position that a killed run has left there. Spelled out, not taken
        from the dataset's own state: reading that races with a rank that writes it.
        """
        self._dataset.load_state_dict(
            {
                "epoch": self._epoch,
                "sample_in_epoch": self._batches * self._global_batch,
                "num_canonical_nodes": _CANONICAL_NODES,
                "shuffle_seed": self._dataset.shuffle_seed,
                "initial_physical_nodes": StreamingWorld.detect().num_nodes,
            }
        )


def _keep_serving(_: int) -> None:
    """torchrun and Slurm send a signal to a rank's loader processes too, whose batches the rank still needs."""
    ignore_stop()


def _end_loader_processes() -> None:
    """Before Python's own hook asks them by SIGTERM to end, to which they are deaf, and waits for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _micro_batches(samples: list[dict[str, Any]], size: int) -> list[Batch]:
    return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
