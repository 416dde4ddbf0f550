"""What each kind of job reads, holds and writes: what `preflight` asks about it. Another kind is one more entry."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from ladd_dist.checkpoints.folders import checkpoints_of
from ladd_dist.checkpoints.room import checkpoint_bytes, missing_room
from ladd_dist.config import Config
from ladd_dist.data.handing_over import handed_over
from ladd_dist.data.mds import MANIFEST, Manifest
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.distributed.world import World
from ladd_dist.drawing.plan import Part, plan_parts
from ladd_dist.drawing.scorers import scorer_of
from ladd_dist.engines.build import check_launch
from ladd_dist.engines.registry import engine_entry
from ladd_dist.errors import MissingWeights
from ladd_dist.evaluation.folder import evaluation_place
from ladd_dist.evaluation.judges import check_judge
from ladd_dist.evaluation.reference import list_reference
from ladd_dist.jobs.fit import check_latents
from ladd_dist.jobs.wandb_key import check_key
from ladd_dist.methods.registry import method_of
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.planning.memory import checkpoint_copy, on
from ladd_dist.planning.networks import check_networks
from ladd_dist.planning.onlookers import resident
from ladd_dist.preflight.findings import Finding
from ladd_dist.preflight.folder import Room
from ladd_dist.preflight.memory import Needs
from ladd_dist.training.rules import check_guard

Digest = Callable[[], str]


@dataclass(frozen=True)
class Job:
    """A kind of job. Its functions raise LaddError for input that it would refuse.

    Attributes:
        key: setting of the folder that it writes in.
        folder: where exactly.
        check: what it checks before it loads anything.
        inputs: what all ranks have to read alike, as functions that make a digest of it.
        room: what it will write into the folder at the least.
        needs: what a rank holds in memory.
        pieces: how many pieces of work are left for ranks to take; None where every rank has a share of all.
    """

    key: str
    folder: Callable[[Config], Path]
    check: Callable[[Config, World], object]
    inputs: Callable[[Config], Mapping[str, Digest]]
    room: Callable[[Config], Room] = lambda config: Room()
    needs: Callable[[Config, World], Needs] = lambda config, world: Needs()
    pieces: Callable[[Config], int] | None = None


def _check_training(config: Config, world: World) -> None:
    check_launch(config, world)
    config.accumulation(world.size)
    check_guard(config)
    if world.is_main:
        check_key(config)
    check_networks(config)
    if config.train.evaluate_every:
        _check_names(config)
        list_reference(config)


def _check_synthesis(config: Config, world: World) -> None:
    check_latents(config)
    check_networks(config)


def _check_evaluation(config: Config, world: World) -> None:
    check_networks(config)
    _check_names(config)
    list_reference(config)
    evaluation_place(config)


def _check_names(config: Config) -> None:
    """Of judge and scorers; an evaluation goes on without those whose weights are missing, and says so."""
    with suppress(MissingWeights):
        check_judge(config.evaluation.judge)
    for name in config.evaluation.scorers:
        with suppress(MissingWeights):
            scorer_of(name)


def _training_inputs(config: Config) -> Mapping[str, Digest]:
    draws = config.train.preview_every or config.train.evaluate_every
    previews = _prompts(config, config.evaluation.prompts) if draws else {}
    return {"dataset": partial(_manifest, Path(config.data.path)), **previews, **_networks(config)}


def _networks(config: Config) -> dict[str, Digest]:
    folders = {"teacher": config.teacher.path, "student": config.student.path}
    return {name: partial(fingerprint, folder) for name, folder in folders.items() if folder}


def _manifest(root: Path) -> str:
    Manifest.read(root)
    return _digest(root / MANIFEST)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _training_needs(config: Config, world: World) -> Needs:
    """The state, and in host memory the copy of it from which checkpoints are written."""
    state = resident(config, world.size, world.rank)
    layout = engine_entry(config.engine).layout(config, world.size, world.rank)
    copy = checkpoint_copy(config, method_of(config).networks(config), layout, world.rank)
    device, host = on(state, "device"), on(state, "host") + copy
    shared = handed_over(config, world.size)
    return Needs(device, host, shared) if world.device.type == "cuda" else Needs(0, device + host, shared)


def _latents(config: Config) -> Room:
    """Of the pictures that are not drawn yet, in bf16, without their text."""
    space = check_networks(config)
    parts = _missing_parts(config)
    return Room(sum(2 * prod(space.shape(part.entries[0].bucket)) * len(part.entries) for part in parts))


def _missing_parts(config: Config) -> list[Part[PromptEntry]]:
    settings = config.synthesis
    entries = read_prompts(settings.prompts, settings.buckets, settings.images_per_prompt)
    parts = plan_parts(Path(config.data.path), entries, settings.part_samples)
    return [part for part in parts if not part.folder.exists()]


def judge_pieces(left: int, ranks: int) -> Finding:
    """Whether every rank finds something to do; with nothing left a job only looks at what is there."""
    text = f"{left} parts left for {ranks} ranks"
    if left and left < ranks:
        idle = f"{ranks - left} of them stay idle: start fewer, or set synthesis.part_samples lower for a new dataset"
        return Finding("work", "warning", f"{text}, {idle}")
    return Finding("work", "ok", text)


def _prompts(config: Config, file: str) -> Mapping[str, Digest]:
    return {"prompts": partial(_read, file, config.synthesis.buckets)}


def _read(file: str, buckets: list[str]) -> str:
    read_prompts(file, buckets)
    return _digest(Path(file))


_OF_TABLE = Job(
    "data.path", lambda config: Path(config.data.path), lambda config, world: check_networks(config), _networks
)
JOBS: dict[str, Job] = {
    "train": Job(
        "run_dir",
        lambda config: checkpoints_of(config.run_dir),
        _check_training,
        _training_inputs,
        lambda config: Room(missing_room(config), checkpoint_bytes(config)),
        _training_needs,
    ),
    "synthesize": Job(
        "data.path",
        lambda config: Path(config.data.path),
        _check_synthesis,
        lambda config: {**_prompts(config, config.synthesis.prompts), **_networks(config)},
        _latents,
        pieces=lambda config: len(_missing_parts(config)),
    ),
    "pairs": _OF_TABLE,
    "encode": _OF_TABLE,
    "evaluate": Job(
        "run_dir",
        lambda config: Path(config.run_dir),
        _check_evaluation,
        lambda config: {**_prompts(config, config.evaluation.prompts), **_networks(config)},
    ),
}
"""By the name of their launcher."""
