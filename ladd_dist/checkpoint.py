"""Checkpoints: one format for every engine and world size, in safetensors.

    RUN_DIR/checkpoints/step-00000500/rank-00000.safetensors   flat ranges of fp32 tensors, this rank's share
    RUN_DIR/checkpoints/step-00000500/state.json               iteration, data cursor, file checksums, provenance
    RUN_DIR/checkpoints/step-00000500/config.yaml              the resolved configuration
    RUN_DIR/checkpoints/latest                                 name of the newest, moved last

A key is ``NETWORK/KIND/PARAMETER``, such as ``student/exp_avg/net.proj_out.weight``. Each file's header says
which range ``[offset, offset + length)`` of which shape every entry is, so a rank of another engine or world
size reads just the ranges it needs. There is no RNG to save: noise is a function of seed, iteration and sample.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.distributed import World
from ladd_dist.engines.base import STATE_KINDS, Engine, Shard
from ladd_dist.errors import LaddError

_STATE, _LATEST, _RANGES = "state.json", "latest", "ranges"
_HASH_CHUNK = 1 << 22

Shards = Mapping[str, Shard]


class RunState(BaseModel):
    """What a run needs beside tensors to go on."""

    iteration: int
    """Finished iterations."""
    data: dict[str, int]
    teacher: str
    """Fingerprint of the teacher that is also the discriminator's backbone."""
    engine: str
    world_size: int
    files: dict[str, str]
    """SHA-256 of every tensor file."""


def network_shards(name: str, engine: Engine) -> dict[str, Shard]:
    """Weights and AdamW moments of one network under checkpoint keys."""
    return {f"{name}/{kind}/{p}": shard for kind in STATE_KINDS for p, shard in engine.shards(kind).items()}


def save(
    config: Config,
    world: World,
    shards: Shards,
    replicated: Shards,
    iteration: int,
    data: dict[str, int],
    teacher: str,
) -> Path:
    """Write a checkpoint whole, move it into place, then the pointer, then drop the oldest.

    Args:
        shards: this rank's ranges of sharded tensors.
        replicated: tensors that are whole on every rank; rank 0 writes them.
    """
    root = Path(config.run_dir) / "checkpoints"
    final, temporary = root / f"step-{iteration:08d}", root / f".step-{iteration:08d}"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    mine = dict(shards) | (dict(replicated) if world.is_main else {})
    file = temporary / f"rank-{world.rank:05d}.safetensors"
    _write_tensors(file, mine)
    files = dict(world.gather((file.name, _sha256(file))))
    if world.is_main:
        state = RunState(
            iteration=iteration,
            data=data,
            teacher=teacher,
            engine=config.engine,
            world_size=world.size,
            files=files,
        )
        (temporary / _STATE).write_text(state.model_dump_json(indent=2) + "\n")
        config.save(temporary / "config.yaml")
        for path in temporary.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(root)
        _point(root, final.name)
        _prune(root, config.train.keep_checkpoints)
    world.barrier()
    return final


def find(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none."""
    root = Path(run_dir) / "checkpoints"
    pointer = root / _LATEST
    if pointer.is_file() and (root / pointer.read_text().strip() / _STATE).is_file():
        return root / pointer.read_text().strip()
    whole = sorted(path.parent for path in root.glob(f"step-*/{_STATE}"))
    return whole[-1] if whole else None


class Checkpoint:
    """A checkpoint opened for reading, verified.

    Raises:
        LaddError: if a file is missing, truncated or altered, naming it and the remedy.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        try:
            self.state = RunState.model_validate_json((path / _STATE).read_text(), strict=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise LaddError(f"checkpoint {path / _STATE} is damaged ({reason}): {self._remedy()}") from None
        names = sorted(self.state.files)
        damaged = [name for name in names[world.rank :: world.size] if not self._intact(name)]
        if found := [name for names in world.gather(damaged) for name in names]:
            raise LaddError(f"checkpoint file {path / found[0]} is damaged: {self._remedy()}")
        self._pieces: dict[str, list[tuple[int, int, Path]]] = defaultdict(list)
        self.shapes: dict[str, torch.Size] = {}
        for name in names:
            self._index(path / name)

    def _remedy(self) -> str:
        return f"remove the folder {self.path} to go on from the one before it"

    def _intact(self, name: str) -> bool:
        file = self.path / name
        return file.is_file() and _sha256(file) == self.state.files[name]

    def _index(self, file: Path) -> None:
        with safe_open(file, "pt") as handle:
            for key, (offset, length, shape) in json.loads(handle.metadata()[_RANGES]).items():
                self.shapes[key] = torch.Size(shape)
                if length:
                    self._pieces[key].append((offset, length, file))
        for pieces in self._pieces.values():
            pieces.sort()

    def read(self, key: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened tensor, from whichever files hold them."""
        result = torch.empty(length)
        pieces = self._pieces[key]
        position, end = offset, offset + length
        while position < end:
            before = bisect_right([p[0] for p in pieces], position)
            start, size, file = pieces[before - 1] if before else (position, 0, self.path)
            until = min(end, start + size)
            if until <= position:
                raise LaddError(f"checkpoint {self.path} lacks part of {key}: {self._remedy()}")
            with safe_open(file, "pt") as handle:
                result[position - offset : until - offset] = handle.get_slice(key)[position - start : until - start]
            position = until
        return result

    def network(self, name: str) -> dict[str, Tensor]:
        """Whole weights of one network (``student``, ``ema`` or ``heads``), fp32, by parameter name."""
        prefix = f"{name}/param/"
        return {
            key.removeprefix(prefix): self.read(key, 0, shape.numel()).view(shape)
            for key, shape in self.shapes.items()
            if key.startswith(prefix)
        }

    def load(self, shards: Shards) -> None:
        """Fill live shards in place.

        Raises:
            LaddError: if the checkpoint is of other networks, naming the first tensor that differs.
        """
        for key, shard in shards.items():
            if self.shapes.get(key) != shard.shape:
                raise LaddError(
                    f"checkpoint {self.path} has {key} of shape {tuple(self.shapes.get(key, ()))}, but this "
                    f"configuration needs {tuple(shard.shape)}: restore the configuration in "
                    f"{self.path / 'config.yaml'}, or set run_dir to a new folder"
                )
            shard.local.copy_(self.read(key, shard.offset, shard.local.numel()))


def _write_tensors(file: Path, shards: Shards) -> None:
    tensors = {key: shard.local.detach().cpu() for key, shard in shards.items()}
    ranges = {key: (shard.offset, shard.local.numel(), tuple(shard.shape)) for key, shard in shards.items()}
    save_file(tensors, file, metadata={_RANGES: json.dumps(ranges)})
    _sync(file)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the operating system put a file or folder on disk before anything points to it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(root: Path, name: str) -> None:
    temporary = root / f".{_LATEST}"
    temporary.write_text(name + "\n")
    _sync(temporary)
    temporary.replace(root / _LATEST)


def _prune(root: Path, keep: int) -> None:
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
