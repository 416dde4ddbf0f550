"""Writes checkpoints beside the training: the loop waits for a copy to host memory, a thread does the rest.

A folder is written whole under a hidden name, read back and compared, put on disk, renamed into place; then the
pointer moves, and only then are old folders dropped. Whatever happens before leaves the checkpoint before it as
it was: one of the same iteration steps aside, and is put back by the next start if the new one never took its place.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.checkpoints.folders import LATEST, STEP_FOLDERS, checkpoints_of, is_pinned, step_folder
from ladd_dist.checkpoints.reader import CONFIG, RANGES, STATE, RunState, Shards
from ladd_dist.config import Config, load
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.files.checksums import SUMS, sha256, write_sums
from ladd_dist.files.disk import sync
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, warn

T = TypeVar("T")

_GONE, _REPLACED = ".gone-", ".replaced-"
"""Names begin so of folders that are being removed, and of one whose place another takes."""
_SLAB = 2**28
"""Elements for which page-locked memory is got at once: PyTorch rounds each piece up to a power of two."""


class _Failed(Exception):
    """Some rank could not do its part: which one, and why."""


class CheckpointWriter:
    """At most one checkpoint is being written; the next one waits for it. Use it on every rank alike.

    Nothing is written, and nothing removed, once the lock is lost; None cannot be lost.

    Raises:
        LaddError: if some rank cannot write to ``run_dir``.
    """

    def __init__(self, config: Config, world: World, lock: RunLock | None = None) -> None:
        self._config, self._world, self._lock = config, world.aside(), lock or RunLock()
        self._pinned = world.device.type == "cuda"
        self._root = checkpoints_of(config.run_dir)
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._try_folder()

    def _try_folder(self) -> None:
        """Better now than after the first hundreds of iterations."""
        try:
            self._alone(lambda: self._root.mkdir(parents=True, exist_ok=True))
            self._alone(lambda: _put_back(self._root))
            self._together(lambda: _try_to_write(self._root / f".rank-{self._world.rank:05d}"))
        except _Failed as error:
            reason = f"run_dir={self._config.run_dir} cannot be written to ({error})"
            raise LaddError(f"{reason}: set it to a folder that all ranks share") from None

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; `wait` tells why."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(self, shards: Shards, state: RunState) -> Path:
        """Copy this rank's shards to host memory and start writing.

        Returns:
            The folder that the checkpoint will be in once it is whole.

        Raises:
            LaddError: if the checkpoint before could not be written.
        """
        self.wait()
        begin = time.monotonic()
        ranges = {key: (shard.offset, shard.local.numel(), tuple(shard.shape)) for key, shard in shards.items()}
        copies = self._copy(shards)
        final = step_folder(self._config.run_dir, state.iteration)
        self._writing = self._thread.submit(self._write, final, copies, ranges, state, begin)
        return final

    def wait(self) -> None:
        """Wait until the last checkpoint is safe on disk.

        Raises:
            LaddError: on every rank, if any could not write its part; the checkpoint before it is intact.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @torch.no_grad()
    def _copy(self, shards: Shards) -> dict[str, Tensor]:
        if not self._copies:  # page-locked memory is slow to get: it is kept for the next checkpoint
            self._copies = _room({key: shard.local.numel() for key, shard in shards.items()}, self._pinned)
        for key, shard in shards.items():
            self._copies[key].copy_(shard.local, non_blocking=True)
        if self._pinned:
            torch.cuda.synchronize()
        return self._copies

    def _write(
        self, final: Path, copies: dict[str, Tensor], ranges: Mapping[str, tuple], state: RunState, begin: float
    ) -> None:
        temporary = self._root / f".{final.name}"
        file = temporary / f"rank-{self._world.rank:05d}.safetensors"
        try:
            self._alone(lambda: _make_room(temporary))
            sums = dict(self._together(lambda: (file.name, _write_tensors(file, copies, ranges))))
            self._alone(lambda: self._publish(temporary, final, state, sums))
        except _Failed as error:
            self._drop(temporary)
            raise LaddError(
                f"checkpoint {final} could not be written ({error}); those before it are intact: "
                "make room or mend what it says, then start the same command again"
            ) from None
        self._world.position.saved = str(final)
        log(f"saved {final} in {time.monotonic() - begin:.1f} s")

    def _drop(self, temporary: Path) -> None:
        if self._world.is_main and not self._lock.lost:
            shutil.rmtree(temporary, ignore_errors=True)
        # Together: when one rank leaves, launchers end the others, who would not come to the end of this.
        self._world.barrier()

    def _alone(self, act: Callable[[], None]) -> None:
        """Do something on rank 0 while the others wait; if it fails, all of them fail."""

        def alone() -> None:
            self._lock.check()
            act()

        self._together(alone if self._world.is_main else lambda: None)

    def _together(self, act: Callable[[], T]) -> list[T]:
        """Do something on every rank and return all results; if it fails on one, all of them fail."""
        result, problem = None, None
        try:
            result = act()
        except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
            problem = f"rank {self._world.rank}: {type(error).__name__}: {' '.join(str(error).split())}"
        outcomes = self._world.gather((result, problem))
        for _, found in outcomes:
            if found:
                raise _Failed(found)
        return [result for result, _ in outcomes]

    def _publish(self, temporary: Path, final: Path, state: RunState, sums: dict[str, str]) -> None:
        (temporary / STATE).write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self._config.save(temporary / CONFIG)
        write_sums(temporary, sums | {name: sha256(temporary / name) for name in (STATE, CONFIG)})
        # By name, not by listing the folder: what a rank has written to a disk of its own is not there.
        for path in (*(temporary / name for name in (*sums, STATE, CONFIG, SUMS)), temporary):
            sync(path)
        if not (RunState.read(temporary / STATE) == state and load(temporary / CONFIG) == self._config):
            raise OSError(f"{STATE} or {CONFIG} does not read back as it was written")
        earlier = final.with_name(f"{_REPLACED}{final.name}")
        if final.exists():
            final.rename(earlier)
        temporary.rename(final)
        sync(self._root)
        _point(self._root, final.name)
        if earlier.exists():
            _remove(earlier)
        _prune(self._root, final.name, self._config.train.keep_checkpoints)


def _try_to_write(file: Path) -> None:
    file.write_bytes(b"")
    file.unlink()


def _put_back(root: Path) -> None:
    """A checkpoint that had stepped aside when a run was killed; if another has its place, remove it."""
    for earlier in root.glob(f"{_REPLACED}{STEP_FOLDERS}"):
        final = earlier.with_name(earlier.name.removeprefix(_REPLACED))
        if final.exists():
            _remove(earlier)
        else:
            earlier.rename(final)


def _make_room(temporary: Path) -> None:
    """Make an empty folder, and remove what runs that were killed have left unfinished."""
    for prefix in (".", _GONE):
        for left in temporary.parent.glob(f"{prefix}{STEP_FOLDERS}"):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)


def _room(elements: Mapping[str, int], pinned: bool) -> dict[str, Tensor]:
    """A tensor in host memory for each number of elements, largest first in as few pieces of memory as hold them."""
    tensors, slabs, left = dict[str, Tensor](), list[Tensor](), sum(elements.values())
    for key, count in sorted(elements.items(), key=itemgetter(1), reverse=True):
        index = next((i for i, slab in enumerate(slabs) if slab.numel() >= count), None)
        if index is None:
            index = len(slabs)
            slabs.append(torch.empty(max(count, min(left, _SLAB)), dtype=torch.float32, pin_memory=pinned))
        tensors[key], slabs[index] = slabs[index][:count], slabs[index][count:]
        left -= count
    return tensors


def _write_tensors(file: Path, tensors: dict[str, Tensor], ranges: Mapping[str, tuple]) -> str:
    """Write, read back and compare. Returns the checksum of what is on disk."""
    save_file(tensors, file, metadata={RANGES: json.dumps(ranges)})
    sync(file)
    with safe_open(file, "pt") as written:
        for key, tensor in tensors.items():
            # As bits: a NaN is not equal to itself.
            if not torch.equal(written.get_tensor(key).view(torch.int32), tensor.view(torch.int32)):
                raise OSError(f"{file} does not read back as it was written: {key} differs")
    return sha256(file)


def _point(root: Path, name: str) -> None:
    temporary = root / f".{LATEST}"
    temporary.write_text(name + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(root / LATEST)
    sync(root)


def _prune(root: Path, newest: str, keep: int) -> None:
    """Keep some of the newest; folders beyond it are of a future that the run has gone back from."""
    folders = [folder for folder in sorted(root.glob(STEP_FOLDERS)) if not is_pinned(folder)]
    kept = [folder for folder in folders if folder.name <= newest][-keep:]
    for old in folders:
        if old not in kept:
            _remove(old)


def _remove(folder: Path) -> None:
    """Under a hidden name first: what is half removed must not look like a checkpoint."""
    gone = folder.with_name(f"{_GONE}{folder.name.removeprefix(_REPLACED)}")
    try:
        folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        warn(f"{folder} could not be removed ({error}): remove it by hand")
