"""Offline generation of the training set: the guided teacher's latents, sharded over ranks and resumable.

The list of pictures is cut into parts. A part is claimed by rank ``number % world size``, written to a hidden
folder and renamed into place: whatever is killed, a part is whole or absent, and no picture is lost or drawn
twice, also when the next start has another number of ranks.
"""

import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from streaming import MDSWriter
from streaming.base.util import merge_index

from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.check import verify
from ladd_dist.data.damage import redraw
from ladd_dist.data.index import Index
from ladd_dist.data.mds import MANIFEST, Manifest, Provenance, columns, to_bits
from ladd_dist.data.parts import part_folder
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline, load_backbone, teacher_schedule
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError, Requeue
from ladd_dist.files.run_lock import RunLock
from ladd_dist.log import log, progress
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.fingerprint import fingerprint, is_of
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.requests import SharedStop
from ladd_dist.supervision.signals import Signals
from ladd_dist.versions import version_of

_PLAN = "plan.json"
_SHARD_BYTES = 1 << 26


@dataclass(frozen=True)
class Part:
    """A run of pictures of one bucket that is written whole."""

    folder: Path
    entries: list[PromptEntry]


class _Stopped(Exception):
    """A signal asks to stop in the middle of a part."""


def synthesize(config: Config, world: World, lock: RunLock | None = None, signals: Signals | None = None) -> Manifest:
    """Draw every picture that is not there yet, then write the streams' indices and the manifest.

    Args:
        lock: the caller's on ``data.path``, checked before anything is written there; None checks nothing.
        signals: tell whether all ranks are to stop after their batch; None never does.

    Raises:
        LaddError: for input that cannot be used, or if the folder holds another plan's samples or another job has
            taken it over.
        Requeue: on all ranks, if a signal asked one of them to stop; finished parts are there.
    """
    settings, root = config.synthesis, Path(config.data.path)
    lock, signals = lock or RunLock(), signals or Signals()
    space = check_networks(config)
    entries = read_prompts(settings.prompts, settings.buckets, settings.images_per_prompt)
    parts = plan_parts(root, entries, settings.part_samples)
    if empty := set(settings.buckets) - {entry.bucket.name for entry in entries}:
        raise LaddError(
            f"bucket {min(empty)} gets no prompt from {settings.prompts}: "
            "add some, or take it out of synthesis.buckets"
        )
    provenance = _provenance(config, space, teacher_schedule(config).settings)
    pipeline = Pipeline(config, world.device)
    teacher = load_backbone(config.teacher.path, compute_dtype(config), world.device)
    provenance = _check_plan(root, provenance, config.teacher.path, world)

    mine = [part for i, part in enumerate(parts) if i % world.size == world.rank]
    finished = [part for part in mine if part.folder.exists()]
    missing = [part for part in mine if not part.folder.exists()]
    world.together(lambda: _verify(finished, space))
    done = sum(len(part.entries) for part in finished)
    bar = progress("synthesize", sum(len(part.entries) for part in mine), done=done, unit="img", world=world)

    stop = SharedStop(world, signals)

    def advance(count: int) -> None:
        lock.check()
        bar.update(count)
        if stop.asked():
            raise _Stopped

    with suppress(_Stopped):
        for part in missing:
            _write_part(part, pipeline, teacher, config, provenance, advance)
    bar.close()
    if any(world.gather(stop.asked())):
        raise Requeue("stopped by a signal: start the same command again, finished parts are kept")

    world.barrier()
    if world.is_main:
        lock.check()
        _finish(root, parts, provenance)
        log(f"dataset: {len(entries)} latents in {root}")
    world.barrier()
    return Manifest.read(root)


def plan_parts(root: Path, entries: list[PromptEntry], part_samples: int) -> list[Part]:
    """Cut the pictures of every bucket into parts, a function of the prompt list alone."""
    by_bucket: dict[str, list[PromptEntry]] = defaultdict(list)
    for entry in entries:
        by_bucket[entry.bucket.name].append(entry)
    return [
        Part(part_folder(root, bucket, start // part_samples), rows[start : start + part_samples])
        for bucket, rows in sorted(by_bucket.items())
        for start in range(0, len(rows), part_samples)
    ]


def _provenance(config: Config, space: LatentSpace, scheduler: dict) -> Provenance:
    settings = config.synthesis
    return Provenance(
        teacher=fingerprint(config.teacher.path),
        precision=config.train.precision,
        prompts=hashlib.sha256(Path(settings.prompts).read_bytes()).hexdigest()[:16],
        seed=config.seed,
        guidance=settings.guidance,
        steps=settings.steps,
        scheduler=json.loads(json.dumps(scheduler, default=str)),
        buckets=settings.buckets,
        images_per_prompt=settings.images_per_prompt,
        part_samples=settings.part_samples,
        latent_channels=space.channels,
        max_t5_tokens=config.teacher.max_t5_tokens,
    )


def _check_plan(root: Path, provenance: Provenance, folder: str, world: World) -> Provenance:
    """Record what is being made, or compare with what was: a folder never mixes two plans.

    Returns:
        ``provenance``, with the teacher's fingerprint as the plan has it.
    """
    plan = root / _PLAN
    if plan.exists():
        try:
            before = json.loads(plan.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LaddError(f"{plan} is damaged ({error}): set data.path to a new folder, or remove {root}") from None
        if not isinstance(before, dict):
            raise LaddError(f"{plan} is damaged (no mapping): set data.path to a new folder, or remove {root}")
        if is_of(folder, str(before.get("teacher"))):
            provenance = replace(provenance, teacher=before["teacher"])
        now = asdict(provenance)
        if changed := [key for key in now if before.get(key) != now[key]]:
            key = changed[0]
            raise LaddError(
                f"{root} holds latents made with {key}={before.get(key)}, but this run has {key}={now[key]}: "
                "set data.path to a new folder, or remove the old one"
            )
    elif others := [name for name in (MANIFEST, *provenance.buckets) if (root / name).exists()]:
        raise LaddError(
            f"{root} holds {others[0]} but no {_PLAN}, so no synthesis made it: set data.path to a new folder"
        )
    world.barrier()
    if world.is_main and not plan.exists():
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".{_PLAN}"
        temporary.write_text(json.dumps(asdict(provenance), indent=2) + "\n", encoding="utf-8")
        temporary.replace(plan)
    world.barrier()
    return provenance


def _verify(parts: list[Part], space: LatentSpace) -> None:
    """A part that is there counts as finished only if it is what was written."""
    begin = time.monotonic()
    for part in parts:
        latent = space.shape(part.entries[0].bucket)
        index = Index.read(part.folder, len(part.entries), latent, False, redraw(part.folder))
        verify((part.folder, shard) for shard in index.shards)
    if parts:
        log(f"verified {len(parts)} finished parts in {time.monotonic() - begin:.1f} s")


def _write_part(
    part: Part,
    pipeline: Pipeline,
    teacher: Backbone,
    config: Config,
    made: Provenance,
    advance: Callable[[int], object],
) -> None:
    settings = config.synthesis
    temporary = part.folder.with_name(f".{part.folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    first = pipeline.encode_entries(part.entries[:1], "synthesis")
    schema = columns(first.shape, tuple(first.cond.context.shape[1:]), tuple(first.cond.pooled.shape[1:]))
    with MDSWriter(out=str(temporary), columns=schema, hashes=["xxh64"], size_limit=_SHARD_BYTES) as writer:
        for start in range(0, len(part.entries), settings.batch):
            rows = part.entries[start : start + settings.batch]
            encoded = pipeline.encode_entries(rows, "synthesis")
            latents = pipeline.teacher(teacher, encoded, settings.steps, settings.guidance)
            if not torch.isfinite(latents).all():
                raise LaddError(f"teacher {config.teacher.path} drew non-finite latents: try train.precision=fp32")
            for i, row in enumerate(rows):
                writer.write(
                    {
                        "id": row.id,
                        "latent": to_bits(latents[i]),
                        "context": to_bits(encoded.cond.context[i]),
                        "pooled": to_bits(encoded.cond.pooled[i]),
                        "prompt": row.prompt,
                        "bucket": row.bucket.name,
                        "seed": encoded.seeds[i],
                        "guidance": settings.guidance,
                        "steps": settings.steps,
                        "teacher": made.teacher,
                    }
                )
            advance(len(rows))
    temporary.rename(part.folder)


def _finish(root: Path, parts: list[Part], provenance: Provenance) -> None:
    counts: dict[str, int] = defaultdict(int)
    for part in parts:
        counts[part.folder.parent.name] += len(part.entries)
    for bucket in counts:
        (root / bucket / "index.json").unlink(missing_ok=True)  # merge_index refuses to replace it
        merge_index(
            [str(p.folder / "index.json") for p in parts if p.folder.parent.name == bucket], str(root / bucket)
        )
    packages = ("torch", "diffusers", "transformers", "mosaicml-streaming")
    Manifest(provenance, dict(counts), {name: version_of(name) for name in packages}).write(root)
