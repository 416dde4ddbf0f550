"""What the student is held against while it trains, as numbers in one file: a run draws it once."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.evaluation.draw import OTHER_HALF
from ladd_dist.evaluation.drawn import Drawn, Rows
from ladd_dist.evaluation.reference import Listed
from ladd_dist.models.fingerprint import fingerprint

FILE = "evaluations.safetensors"
"""In a run's folder."""
_REFERENCE = "reference set"
_MADE_FROM = "made_from"


class Baselines(NamedTuple):
    """The teacher's sets, once more the guided one's, and the judge's features of a reference set's buckets."""

    sets: Mapping[str, Drawn]
    other_half: Drawn
    reference: Mapping[str, Rows]


def made_from(config: Config, entries: list[PromptEntry], listed: Listed, looks: list[str]) -> str:
    """All that baselines depend on, in short: of other settings they are drawn again.

    Args:
        looks: names of what looks at the pictures.
    """
    method, synthesis = config.method, config.synthesis
    facts = [
        fingerprint(config.teacher.path), config.teacher.max_t5_tokens, config.train.precision, config.seed,
        synthesis.steps, synthesis.guidance, [method.times(steps) for steps in method.step_counts],
        [(entry.prompt, entry.bucket.name) for entry in entries], config.evaluation.judge, looks,
        [(str(file), file.stat().st_size, bucket.name) for file, bucket in listed],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def keep(file: Path, baselines: Baselines, source: str) -> None:
    """Write them, whole or not at all.

    Args:
        source: see `made_from`.
    """
    rows = {(name, look): of for name, of_set in baselines.sets.items() for look, of in of_set.rows.items()}
    rows |= {(OTHER_HALF, look): of for look, of in baselines.other_half.rows.items()}
    rows |= {(_REFERENCE, bucket): of for bucket, of in baselines.reference.items()}
    tensors = {json.dumps([*key, part]): tensor for key, of in rows.items() for part, tensor in of._asdict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    save_file(tensors, temporary, {_MADE_FROM: source})
    temporary.replace(file)


def kept(file: Path, source: str) -> Baselines | None:
    """Those of the file; None if it is not there, not whole, or of another source."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    try:
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get(_MADE_FROM) != source:
                return None
            for key in stored.keys():  # noqa: SIM118 - it is no mapping
                name, look, part = json.loads(key)
                found.setdefault(name, {}).setdefault(look, {})[part] = stored.get_tensor(key)
    except (OSError, SafetensorError):
        return None
    sets = {name: {look: Rows(**parts) for look, parts in of_set.items()} for name, of_set in found.items()}
    reference, half = sets.pop(_REFERENCE, {}), sets.pop(OTHER_HALF)
    return Baselines({name: Drawn(rows, 0) for name, rows in sets.items()}, Drawn(half, 0), reference)
