"""What the student is held against while it trains, as numbers in one file: a run draws it once."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ladd_dist.config import Config
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.evaluation.draw import OTHER_HALF
from ladd_dist.evaluation.drawn import Drawn, Keyed, Rows, load_rows, save_rows
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
    rows: Keyed = {(name, look): of for name, of_set in baselines.sets.items() for look, of in of_set.rows.items()}
    rows |= {(OTHER_HALF, look): of for look, of in baselines.other_half.rows.items()}
    rows |= {(_REFERENCE, bucket): of for bucket, of in baselines.reference.items()}
    save_rows(file, rows, {_MADE_FROM: source})


def kept(file: Path, source: str) -> Baselines | None:
    """Those of the file; None if it is not there, not whole, or of another source."""
    there = load_rows(file)
    if there is None or there[1].get(_MADE_FROM) != source:
        return None
    sets: dict[str, dict[str, Rows]] = {}
    for (name, look), rows in there[0].items():
        sets.setdefault(name, {})[look] = rows
    reference, half = sets.pop(_REFERENCE, {}), sets.pop(OTHER_HALF)
    return Baselines({name: Drawn(rows, 0) for name, rows in sets.items()}, Drawn(half, 0), reference)
