"""Endless batches of synthetic latents, in an order that is a function of seed, attempt and position alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from streaming import Stream
from torch.utils.data import DataLoader

from ladd_dist.config import Config
from ladd_dist.data.mds import Manifest, collate
from ladd_dist.data.mismatched import MismatchedPrompts
from ladd_dist.data.patches import patch_streaming
from ladd_dist.data.shards import ShardDataset
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.noise import attempt_seed
from ladd_dist.distributed.world import World
from ladd_dist.methods.registry import method_of
from ladd_dist.supervision.signals import ignore_stop

_NODES = 1
"""For which Streaming makes its order, which is then dealt out: see `data.order`."""


class LatentReader:
    """Reads this rank's share of each global batch; a global batch holds one bucket, the same on all ranks.

    Args:
        config: the run's configuration; its dataset must have passed `check.check_dataset`.

    Raises:
        LaddError: if the installed version of MosaicML Streaming is not the one that this was written for, or if the
            method asks for mismatched prompts and a bucket has only one.
    """

    def __init__(self, config: Config, manifest: Manifest, world: World) -> None:
        patch_streaming()
        root = Path(config.data.path)
        self._micro_batch = config.micro_batch(world.size)
        self._global_batch = config.train.global_batch
        self._share = self._global_batch // world.size
        asked_by = method_of(config).mismatched_prompts(config)
        dataset = partial(MismatchedPrompts, asked_by) if asked_by else ShardDataset
        self._dataset = dataset(
            streams=[Stream(local=str(root / bucket)) for bucket in manifest.counts],
            batch_size=self._global_batch,
            batching_method="per_stream",
            shuffle=True,
            shuffle_seed=config.data.shuffle_seed,
            num_canonical_nodes=_NODES,
        )
        self._workers, self._pinned = config.data.workers, world.device.type == "cuda"
        self._seed, self._attempt = config.data.shuffle_seed, 0
        self._epoch, self._batches, self._moved = 0, 0, True

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one iteration after the other, epoch after epoch."""
        loader = self._loader()
        while True:
            if self._moved:
                self._seek()
            for micro in loader:
                self._batches += 1
                yield micro
                if self._moved:
                    break
            else:
                self._epoch, self._batches = self._epoch + 1, 0

    def _loader(self) -> DataLoader[Any]:
        if self._workers:
            atexit.register(_end_loader_processes)
        return DataLoader(
            self._dataset,
            # The whole share at once: loader processes take turns, each with global batches of its own.
            batch_size=self._share,
            num_workers=self._workers,
            collate_fn=partial(_micro_batches, size=self._micro_batch),
            persistent_workers=self._workers > 0,
            worker_init_fn=_keep_serving,
            drop_last=True,
            pin_memory=self._pinned,
        )

    def state_dict(self) -> dict[str, int]:
        """Position behind the last iteration that was yielded."""
        return {"epoch": self._epoch, "samples": self._batches * self._global_batch}

    def load_state_dict(self, state: dict[str, int], attempt: int = 0) -> None:
        """Go on at a position, before iterating or in its midst; call it on every rank between the same iterations.

        Args:
            attempt: how often the run has gone back; another one is another order.
        """
        self._epoch, self._batches = state["epoch"], state["samples"] // self._global_batch
        self._attempt, self._moved = attempt, True

    def _seek(self) -> None:
        """Tell Streaming the position, in shared memory.

        Even at the start of a run: Streaming would go on from a position that a killed run has left there. Spelled
        out, not taken from the dataset's own state: reading that races with a rank that writes it.
        """
        self._moved = False
        self._dataset.next_epoch = self._epoch  # a position before it counts as outdated
        self._dataset.load_state_dict(
            {
                "epoch": self._epoch,
                "sample_in_epoch": self._batches * self._global_batch,
                "num_canonical_nodes": _NODES,
                "shuffle_seed": attempt_seed(self._seed, self._attempt),
                "initial_physical_nodes": _NODES,
            }
        )


def _keep_serving(_: int) -> None:
    """Ignore stop signals, which torchrun and Slurm also send to loader processes: their batches are still needed."""
    ignore_stop()


def _end_loader_processes() -> None:
    """Kill loader processes at exit: they ignore SIGTERM, by which Python would ask them to end and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _micro_batches(samples: list[dict[str, Any]], size: int) -> list[Batch]:
    return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
