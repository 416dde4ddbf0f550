"""Checkpoints: one format for every engine and world size, in safetensors.

    RUN_DIR/checkpoints/step-00000500/rank-00000.safetensors   flat ranges of fp32 tensors, this rank's share
    RUN_DIR/checkpoints/step-00000500/state.json               iteration, updates, data cursor, provenance
    RUN_DIR/checkpoints/step-00000500/config.yaml              the resolved configuration
    RUN_DIR/checkpoints/step-00000500/SHA256SUMS               checksums of these files
    RUN_DIR/checkpoints/latest                                 name of the newest, moved last

A key is ``NETWORK/KIND/PARAMETER``, such as ``student/exp_avg/net.proj_out.weight``. Each file's header says
which range ``[offset, offset + length)`` of which shape every entry is, so a rank of another engine or world
size reads just the ranges it needs. There is no RNG to save: noise is a function of seed, attempt, iteration and
sample.
This file reads; `writer` writes, and `folders` says what the folders are called.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ladd_dist.checkpoints.folders import candidates, checkpoints_of, step_folder
from ladd_dist.config import Config, load
from ladd_dist.data.mds import Manifest
from ladd_dist.distributed.world import World
from ladd_dist.engines.base import STATE_KINDS, Engine, Shard, fill
from ladd_dist.errors import DamagedError, LaddError
from ladd_dist.files.checksums import SUMS, check_sum, read_sums, sha256
from ladd_dist.log import warn
from ladd_dist.methods.base import Method, optimizer
from ladd_dist.methods.registry import method_of
from ladd_dist.models.fingerprint import is_of
from ladd_dist.models.lazy import LazyTensors
from ladd_dist.models.start import Start

STATE, RANGES, CONFIG = "state.json", "ranges", "config.yaml"
_TENSORS = ".safetensors"
_START = ("student.path", "student.layers", "student.heads", "student.lora")
_BINDING = ("seed", "method", *_START, "data.shuffle_seed", "train.global_batch")
"""Settings that must not differ on resume: numbers, networks and the order of the data depend on them. A method adds
its own and exempts some."""

Shards = Mapping[str, Shard]


class RunState(BaseModel):
    """What a run needs beside tensors to go on."""

    iteration: int
    """Finished iterations."""
    updates: dict[str, int]
    """Updates of each network: iterations less those skipped for a non-finite gradient."""
    data: dict[str, int]
    teacher: str
    """Fingerprint of the teacher that is also the discriminator's backbone."""
    start: str | None = None
    """That of ``student.path`` where adapters on it are trained; None in checkpoints of older versions, too."""
    engine: str
    world_size: int
    attempt: int = 0
    """How often the run has gone back to an earlier checkpoint; from 1 on it makes other noise and another order."""
    rate_factors: dict[str, float] = {}
    """Of each network's learning rate, see `Engine.rate_factor`; empty in checkpoints of older versions."""
    dataset: Manifest | None = None
    """What it was trained on since it was last started; None in checkpoints of older versions."""

    @classmethod
    def read(cls, file: Path) -> "RunState":
        """Read it from JSON.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is not a state.
        """
        return cls.model_validate_json(file.read_text(encoding="utf-8"), strict=True)


def network_shards(name: str, engine: Engine) -> dict[str, Shard]:
    """Weights and AdamW moments of one network under checkpoint keys."""
    return {f"{name}/{kind}/{p}": shard for kind in STATE_KINDS for p, shard in engine.shards(kind).items()}


def open_newest(run_dir: str | Path, world: World) -> "Checkpoint | None":
    """The newest whole checkpoint of a run, or None if it has none; warns of each damaged one that it passes over.

    Raises:
        LaddError: if there are checkpoints, and all are damaged.
    """
    paths = _agreed(run_dir, world)
    for path in paths:
        try:
            return Checkpoint(path, world)
        except DamagedError as error:
            if world.is_main:
                warn(f"{error}: PASSED OVER, looking for the newest whole one")
    if paths:
        where = checkpoints_of(run_dir)
        raise LaddError(f"all checkpoints in {where} are damaged: restore one, or set a new run_dir")
    return None


def open_iteration(run_dir: str | Path, iteration: int, world: World) -> "Checkpoint":
    """A run's checkpoint of an iteration, on every rank alike.

    Raises:
        LaddError: if there is none.
        DamagedError: if it is not whole.
    """
    path, paths = step_folder(run_dir, iteration), _agreed(run_dir, world)
    if path not in paths:
        there = ", ".join(sorted(path.name for path in paths)) or "none"
        raise LaddError(f"no checkpoint of iteration {iteration} in {path.parent} (there: {there}): choose another")
    return Checkpoint(path, world)


def _agreed(run_dir: str | Path, world: World) -> list[Path]:
    """Rank 0's list of checkpoints on every rank: on a shared file system, two may see different ones."""
    return world.gather(candidates(run_dir) if world.is_main else None)[0]


class Checkpoint:
    """A checkpoint opened for reading, verified, on every rank alike.

    Raises:
        DamagedError: if a file is missing, truncated or altered, naming it.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.shapes: dict[str, torch.Size] = {}
        self._pieces: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._sums: dict[str, str] = {}
        for act in (self._verify, self._open):
            world.together(partial(self._attempt, act, world))

    def _attempt(self, act: Callable[[World], None], world: World) -> None:
        try:
            act(world)
        except (OSError, ValueError, SafetensorError) as error:
            raise DamagedError(f"checkpoint {self.path} is damaged ({' '.join(str(error).split())})") from None

    def _tensor_files(self) -> list[str]:
        return sorted(name for name in self._sums if name.endswith(_TENSORS))

    def _verify(self, world: World) -> None:
        """Hold this rank's share of the files against their checksums."""
        self._sums = read_sums(self.path)
        for name in (STATE, CONFIG, *self._tensor_files()[world.rank :: world.size]):
            check_sum(self.path, name, self._sums)

    def _open(self, _: World) -> None:
        self.state = RunState.read(self.path / STATE)
        files = self._tensor_files()
        if len(files) != self.state.world_size:
            raise ValueError(f"it has tensors of {len(files)} ranks, not of {self.state.world_size}")
        for name in files:
            self._index(self.path / name)
        for key, shape in self.shapes.items():
            self._join(self._pieces[key], key, shape.numel())

    def _index(self, file: Path) -> None:
        handle: Any = safe_open(file, "pt")
        for key, (offset, length, shape) in json.loads(handle.metadata()[RANGES]).items():
            self.shapes[key] = torch.Size(shape)
            if length:
                self._pieces[key].append((offset, length, handle))

    @staticmethod
    def _join(pieces: list[tuple[int, int, Any]], key: str, size: int) -> None:
        """Bring the pieces of one tensor into order; each must begin where the one before it ends."""
        pieces.sort(key=itemgetter(0))
        if [start for start, _, _ in pieces] + [size] != [0] + [start + length for start, length, _ in pieces]:
            raise ValueError(f"parts of {key} are missing")

    @property
    def digest(self) -> str:
        """Prefix of the SHA-256 of its files' checksums: what it holds, whatever its folder is called."""
        return sha256(self.path / SUMS)[:16]

    @cached_property
    def config(self) -> Config:
        """The configuration that the run had when this was written."""
        # Older ones name a number of steps, 4 by default, whatever the times.
        return load(self.path / CONFIG, ["sampling.steps=null"])

    def read(self, key: str, offset: int, length: int) -> Tensor:
        """Elements ``[offset, offset + length)`` of a flattened tensor, from whichever files hold them."""
        result = torch.empty(length)
        pieces = self._pieces[key]
        for start, size, handle in pieces[bisect_right(pieces, offset, key=itemgetter(0)) - 1 :]:
            first, end = max(offset, start), min(offset + length, start + size)
            if first >= end:
                break
            result[first - offset : end - offset] = handle.get_slice(key)[first - start : end - start]
        return result

    def network(self, name: str) -> "NetworkWeights":
        """Weights of one network: ``ema`` or one that the method trains."""
        return NetworkWeights(self, f"{name}/param/")

    def check(self, config: Config, teacher: str) -> None:
        """Check that a run can resume from this checkpoint.

        Raises:
            LaddError: naming the first thing in which they differ.
        """
        if self.state.teacher != teacher and not is_of(config.teacher.path, self.state.teacher):
            raise LaddError(
                f"checkpoint {self.path} was trained with teacher {self.state.teacher}, but teacher.path="
                f"{config.teacher.path} is {teacher}: restore that teacher, or set a new run_dir"
            )
        self.check_start(config)
        method = method_of(self.config)
        theirs, ours = (dict(_binding(c.model_dump(), method)) for c in (self.config, config))
        for key, value in theirs.items():
            if ours.get(key) != value:
                raise LaddError(
                    f"checkpoint {self.path} was trained with {key}={value}, but this configuration has "
                    f"{ours.get(key)}: restore it, or set a new run_dir"
                )
        self._check_moments(config, method)

    def check_start(self, config: Config) -> None:
        """Check that adapters meet the network that they were trained on, wherever its folder lies by now.

        Raises:
            LaddError: if they do not.
        """
        if self.state.start and self.state.start != (Start.fingerprint(config) or ""):
            raise LaddError(
                f"checkpoint {self.path} holds adapters of network {self.state.start}, which is not at student.path="
                f"{config.student.path}: restore that folder (then {self.config.student.path}), or name where it is"
            )

    def _check_moments(self, config: Config, method: type[Method]) -> None:
        for network, section in method.OPTIMIZERS.items():
            ours, theirs = (optimizer(c, section) for c in (config, self.config))
            if "exp_avg" in ours.moments and not any(key.startswith(f"{network}/exp_avg/") for key in self.shapes):
                raise LaddError(
                    f"checkpoint {self.path} has no first moments of the {network}, for it was trained with "
                    f"{section}.betas={theirs.betas}, but this configuration has {ours.betas}: restore it, or set a "
                    "new run_dir"
                )

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
                    f"{self.path / CONFIG}, or set run_dir to a new folder"
                )
        fill(shards, self)


class NetworkWeights(LazyTensors):
    """Whole weights of one network in a checkpoint, fp32, by parameter name; each is read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        shapes = checkpoint.shapes.items()
        self.shapes = {key.removeprefix(prefix): shape for key, shape in shapes if key.startswith(prefix)}

        def read(name: str) -> Tensor:
            shape = self.shapes[name]
            return checkpoint.read(prefix + name, 0, shape.numel()).view(shape)

        super().__init__(self.shapes, read)


def _binding(tree: dict[str, Any], method: type[Method], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, dict):
            yield from _binding(value, method, f"{name}.")
        elif name not in method.UNBOUND and any(
            f"{name}.".startswith(f"{bound}.") for bound in (*_BINDING, *method.BINDING)
        ):
            yield name, value
