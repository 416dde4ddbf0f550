"""Offline generation of the training set: the guided teacher's latents, written as `drawing.writing` says."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.buckets import LatentSpace
from ladd_dist.data.mds import Manifest, Provenance, row
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Encoded, Pipeline, load_backbone, teacher_schedule, tell_cut
from ladd_dist.drawing.plan import Plan, columns_of, plan_parts
from ladd_dist.drawing.writing import write_dataset
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.files.run_lock import RunLock
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.signals import Signals

PURPOSE = "synthesis"
"""What a sample's noise is for, see `image_seed`."""


class Teacher:
    """The guided teacher with its networks loaded, as it draws every training set."""

    def __init__(self, config: Config, world: World) -> None:
        self.pipeline = Pipeline(config, world.device)
        self._config = config
        self._network = load_backbone(config.teacher.path, compute_dtype(config), world.device)

    def draw(self, encoded: Encoded) -> Tensor:
        """Latents ``(B, C, H, W)``, all finite.

        Raises:
            LaddError: if they are not.
        """
        settings = self._config.synthesis
        latents = self.pipeline.teacher(self._network, encoded, settings.steps, settings.guidance)
        if not latents.isfinite().all():
            raise LaddError(f"teacher {self._config.teacher.path} drew non-finite latents: try train.precision=fp32")
        return latents


class _Pictures:
    """Makes a sample of every picture of a prompt list."""

    def __init__(self, config: Config, teacher: Teacher) -> None:
        self._settings, self._teacher, self.batch = config.synthesis, teacher, config.synthesis.batch

    def columns(self, entry: PromptEntry) -> dict[str, str]:
        return columns_of(self._teacher.pipeline.encode_entries([entry], PURPOSE))

    def empty(self) -> Conditioning:
        return self._teacher.pipeline.encode_empty()

    def samples(self, entries: Sequence[PromptEntry]) -> list[dict[str, Any]]:
        encoded = self._teacher.pipeline.encode_entries(list(entries), PURPOSE)
        latents, settings = self._teacher.draw(encoded), self._settings
        return [
            row(
                entry.id, entry.prompt, entry.bucket.name, latent, *cond,
                seed=seed, guidance=settings.guidance, steps=settings.steps,
            )
            for entry, latent, seed, *cond in zip(entries, latents, encoded.seeds, *encoded.cond, strict=True)
        ]  # fmt: skip


def synthesize(config: Config, world: World, lock: RunLock | None = None, signals: Signals | None = None) -> Manifest:
    """Draw every picture that is not there yet, then write the streams' indices and the manifest.

    Args:
        lock: the caller's on ``data.path``, checked before anything is written there; None checks nothing.
        signals: tell whether all ranks are to stop after their batch; None never does.

    Raises:
        LaddError: for input that cannot be used, or as of `write_dataset`.
        Requeue: on all ranks, if a signal asked one of them to stop; finished parts are there.
    """
    settings = config.synthesis
    space = check_networks(config)
    entries = drawable(config, settings.images_per_prompt)
    tell_cut(config, (entry.prompt for entry in entries), world)
    parts = plan_parts(Path(config.data.path), entries, settings.part_samples)
    plan = Plan(parts, drawn(config, space, settings.images_per_prompt), space, "synthesize", "img")
    maker = _Pictures(config, Teacher(config, world))
    return write_dataset(plan, maker, config, world, lock or RunLock(), signals or Signals())


def drawable(config: Config, images_per_prompt: int) -> list[PromptEntry]:
    """The pictures to draw, numbered.

    Raises:
        LaddError: if the prompt list cannot be used, or leaves a bucket empty.
    """
    settings = config.synthesis
    entries = read_prompts(settings.prompts, settings.buckets, images_per_prompt)
    if empty := set(settings.buckets) - {entry.bucket.name for entry in entries}:
        raise LaddError(
            f"bucket {min(empty)} gets no prompt from {settings.prompts}: "
            "add some, or take it out of synthesis.buckets"
        )
    return entries


def drawn(config: Config, space: LatentSpace, images_per_prompt: int, pairs: str | None = None) -> Provenance:
    """The provenance of what the guided teacher draws.

    Raises:
        LaddError: if its schedule cannot be followed.
    """
    settings = config.synthesis
    return Provenance(
        teacher=fingerprint(config.teacher.path),
        precision=config.train.precision,
        prompts=hashlib.sha256(Path(settings.prompts).read_bytes()).hexdigest()[:16],
        seed=config.seed,
        guidance=settings.guidance,
        steps=settings.steps,
        scheduler=json.loads(json.dumps(teacher_schedule(config).settings, default=str)),
        buckets=settings.buckets,
        images_per_prompt=images_per_prompt,
        part_samples=settings.part_samples,
        latent_channels=space.channels,
        max_t5_tokens=config.teacher.max_t5_tokens,
        pairs=pairs,
    )
