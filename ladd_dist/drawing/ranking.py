"""Preference pairs of the guided teacher's own samples: of each prompt's pictures the best against the worst."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.mds import Manifest, row
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Encoded, tell_cut
from ladd_dist.drawing.plan import Plan, columns_of, plan_parts
from ladd_dist.drawing.scorers import Scorer, score, scorer_of
from ladd_dist.drawing.synthesis import Teacher, drawable, drawn
from ladd_dist.drawing.writing import write_dataset
from ladd_dist.errors import LaddError
from ladd_dist.files.run_lock import RunLock
from ladd_dist.planning.networks import check_networks
from ladd_dist.supervision.signals import Signals


class _Ranked:
    """Makes a pair of every prompt, none where all its pictures score the same."""

    def __init__(self, config: Config, teacher: Teacher, name: str, scorer: Scorer, pictures: int) -> None:
        self._config, self._teacher = config, teacher
        self._name, self._scorer, self._pictures = name, scorer, pictures
        self.batch = max(1, config.synthesis.batch // pictures)

    def columns(self, entry: PromptEntry) -> dict[str, str]:
        return columns_of(self._encode([entry]), pairs=True)

    def samples(self, entries: Sequence[PromptEntry]) -> list[dict[str, Any]]:
        encoded, settings = self._encode(entries), self._config.synthesis
        latents, scores = self._draw(encoded, [entry.prompt for entry in entries for _ in range(self._pictures)])
        pairs = []
        for i, (entry, own) in enumerate(zip(entries, scores.split(self._pictures), strict=True)):
            first = i * self._pictures
            best, worst = (first + int(place) for place in (own.argmax(), own.argmin()))
            if own.max() > own.min():
                context, pooled = (tensor[first] for tensor in encoded.cond)
                pairs.append(
                    row(
                        entry.id, entry.prompt, entry.bucket.name, latents[best], context, pooled, latents[worst],
                        seed=encoded.seeds[best], guidance=settings.guidance, steps=settings.steps,
                    )
                )  # fmt: skip
        return pairs

    def empty(self) -> Conditioning:
        return self._teacher.pipeline.encode_empty()

    def _encode(self, entries: Sequence[PromptEntry]) -> Encoded:
        """All pictures of the prompts, one prompt's behind the other's."""
        numbers = [entry.id * self._pictures + place for entry in entries for place in range(self._pictures)]
        seeds = [image_seed(self._config.seed, "pairs", number) for number in numbers]
        once = self._teacher.pipeline.encode([entry.prompt for entry in entries], seeds, entries[0].bucket)
        cond = Conditioning(*(tensor.repeat_interleave(self._pictures, 0) for tensor in once.cond))
        return replace(once, cond=cond)

    def _draw(self, encoded: Encoded, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Latents ``(B, C, H, W)`` and their pictures' scores ``(B,)``, of no more than a batch at a time."""
        latents, scores = [], []
        for start in range(0, len(prompts), self._config.synthesis.batch):
            part = slice(start, start + self._config.synthesis.batch)
            cond = Conditioning(*(tensor[part] for tensor in encoded.cond))
            latents.append(self._teacher.draw(Encoded(cond, encoded.seeds[part], encoded.shape)))
            pictures = self._teacher.pipeline.decode(latents[-1])
            scores.append(score(self._name, self._scorer, prompts[part], pictures))
        return torch.cat(latents), torch.cat(scores)


def rank_pairs(
    config: Config,
    name: str,
    pictures: int,
    world: World,
    lock: RunLock | None = None,
    signals: Signals | None = None,
) -> Manifest:
    """Draw some pictures of every prompt of ``synthesis.prompts`` and keep best and worst as a pair.

    Args:
        name: of the scorer.
        pictures: of each prompt.
        lock: as of `synthesize`, and ``signals``.

    Raises:
        LaddError: for input that cannot be used, or as of `write_dataset`.
        Requeue: on all ranks, if a signal asked one of them to stop; finished parts are there.
    """
    if pictures < 2:
        raise LaddError(f"--pictures {pictures} leaves nothing to choose from: draw 2 or more of each prompt")
    scorer, space = scorer_of(name), check_networks(config)
    entries = drawable(config, 1)
    tell_cut(config, (entry.prompt for entry in entries), world)
    parts = plan_parts(Path(config.data.path), entries, config.synthesis.part_samples)
    plan = Plan(parts, drawn(config, space, pictures, f"rank:{name}"), space, "rank", "prompt", ties=True)
    maker = _Ranked(config, Teacher(config, world), name, scorer, pictures)
    return write_dataset(plan, maker, config, world, lock or RunLock(), signals or Signals())
