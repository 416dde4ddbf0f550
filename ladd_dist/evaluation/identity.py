"""Which evaluation it is: what is drawn of one is of use to no other."""

import hashlib
import json
from collections.abc import Sequence

import torch

from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import Weights
from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.distributed.world import World
from ladd_dist.evaluation.baselines import made_from
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.reference import Listed
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.lora import Lora, Scaled
from ladd_dist.versions import version_of


def identity(
    config: Config,
    world: World,
    entries: list[PromptEntry],
    listed: Listed,
    instruments: Instruments,
    checkpoint: Checkpoint,
    weights: Weights,
    loras: Sequence[Scaled],
) -> str:
    """All that pictures of student and teacher and the numbers in them depend on, in short: rank 0's.

    Judges, scorers and the pictures of a reference set count by name and size, not by what they hold.
    """
    if not world.is_main:
        return str(world.gather("")[0])
    student, settings = config.student, config.evaluation
    facts = [
        made_from(config, entries, listed, [instruments.name, *instruments.scorers]),
        checkpoint.digest, weights, [(_content(lora), scale) for lora, scale in loras],
        student.model_dump(mode="json"), fingerprint(student.path) if student.path else None,
        config.kernels.attention, config.teacher.compile, world.device.type, version_of("torch"),
        settings.batch, settings.pictures,
    ]  # fmt: skip
    return str(world.gather(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16])[0])


def _content(lora: Lora) -> str:
    digest = hashlib.sha256()
    for name in sorted(lora.downs):
        digest.update(f"{name} {lora.scales[name]!r}".encode())
        for part in (lora.downs[name], lora.ups[name]):
            digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
