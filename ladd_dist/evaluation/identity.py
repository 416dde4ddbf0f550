"""Which evaluation it is: what is drawn of one is of use to no other."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import Weights
from ladd_dist.config import Config
from ladd_dist.config.values import clip_folder
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.reference import Listed
from ladd_dist.models.fingerprint import fingerprint, of_weights
from ladd_dist.models.lora import Lora, Scaled
from ladd_dist.versions import version_of


def of_baselines(
    config: Config, world: World, entries: list[PromptEntry], listed: Listed, instruments: Instruments, features: bool
) -> str:
    """All that the teacher's pictures and the numbers in them depend on, in short: rank 0's.

    Judges and scorers count by their weights and by the file that has their code, not by what that imports; the
    pictures of a reference set by name and size.

    Args:
        features: whether the teacher's own are found in them.
    """
    if not world.is_main:
        return str(world.gather("")[0])
    method, synthesis, settings = config.method, config.synthesis, config.evaluation
    facts = [
        fingerprint(config.teacher.path), config.teacher.max_t5_tokens, config.train.precision, config.seed,
        synthesis.steps, synthesis.guidance, [method.times(steps) for steps in method.step_counts],
        [(entry.prompt, entry.bucket.name) for entry in entries], settings.batch, settings.pictures,
        [(str(file), file.stat().st_size, bucket.name) for file, bucket in listed],
        settings.judge, _looks(settings.judge, instruments.judge), features,
        [(name, _looks(name, scorer)) for name, scorer in instruments.scorers.items()],
        config.kernels.attention, config.teacher.compile, world.device.type, version_of("torch"),
    ]  # fmt: skip
    return str(world.gather(_digest(facts))[0])


def of_evaluation(
    config: Config,
    world: World,
    baselines: str,
    checkpoint: Checkpoint,
    weights: Weights,
    loras: Sequence[Scaled],
) -> str:
    """All that the student's pictures and the numbers in them depend on, in short: rank 0's.

    Args:
        baselines: what it is held against, see `of_baselines`.
    """
    if not world.is_main:
        return str(world.gather("")[0])
    student = config.student
    facts = [
        baselines, checkpoint.digest, weights, [(_content(lora), scale) for lora, scale in loras],
        student.model_dump(mode="json"), fingerprint(student.path) if student.path else None,
    ]  # fmt: skip
    return str(world.gather(_digest(facts))[0])


def _digest(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _looks(name: str, looks: object) -> list[str]:
    """What is known of a judge's or a scorer's content; nothing of one that is not there."""
    if looks is None:
        return []
    folder, module = clip_folder(name), sys.modules[getattr(looks, "__module__", None) or type(looks).__module__]
    weights = [of_weights(Path(folder).glob("*.safetensors"))] if folder else []
    code = getattr(module, "__file__", None)
    return [*weights, hashlib.sha256(Path(code).read_bytes()).hexdigest()] if code else weights


def _content(lora: Lora) -> str:
    digest = hashlib.sha256()
    for name in sorted(lora.downs):
        digest.update(f"{name} {lora.scales[name]!r}".encode())
        for part in (lora.downs[name], lora.ups[name]):
            digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
