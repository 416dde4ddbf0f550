"""The step's settings on the card at hand, what is worth most first; and a table of them.

A row is written as soon as it is there, and a setting that has one is not measured again: a call that is cut short
loses what was under way, and the next one goes on.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladd_dist.config import Config, load
from ladd_dist.measuring.one_after_another import CUT_SHORT, OneAfterAnother, Row
from ladd_dist.planning.activations import HOW, checkpointed
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import MeasuredStep
from ladd_dist.planning.needs import needs
from ladd_dist.planning.plan import flops_by_part, largest_bucket

_COMMON = ("train.global_batch=4", "train.log_every=1")
"""Enough to tell the passes' time from the update's."""
_ALONE = ("train.micro_batch=1",)
_ONE = ("train.global_batch=1", *_ALONE, "method.fake_pass=shared")
_PYTORCH = ("kernels.attention=cudnn", "kernels.heads=torch")


@dataclass(frozen=True)
class Setting:
    """One way to run the step."""

    name: str
    overrides: tuple[str, ...]


def settings(config: Config) -> list[Setting]:
    """What is measured of a configuration, in the order of its value."""
    base = config.student.is_teachers_base
    compiled = ("student.compile=true", *(() if base else ("teacher.compile=true",)))
    network = "student" if base else "teacher"
    key = f"{network}.activation_checkpointing"
    others = [(what, how) for what, how in HOW.items() if what != checkpointed(config, network)]
    recomputed = [Setting(f"{network}'s activations {how}", (f"{key}={str(what).lower()}",)) for what, how in others]
    found = [
        Setting("as configured", ()),
        Setting("one sample, shared fake pass", _ONE),
        Setting("compiled", compiled),
        Setting("compiled, this repository's attention", (*compiled, "kernels.attention=triton")),
        Setting("PyTorch's kernels", _PYTORCH),
        *recomputed,
    ]
    if config.train.micro_batch != 1:
        found.append(Setting("one sample at a time", _ALONE))
    if not base:
        float8 = ("teacher.float8=true",)
        found[4:4] = [
            Setting("float8, compiled", (*float8, *compiled)),
            Setting("float8, compiled, one sample, shared fake pass", (*float8, *compiled, *_ONE)),
            Setting("float8, the student's too, compiled", (*float8, "student.float8=true", *compiled)),
            Setting("float8", float8),
        ]
    return found


def check_step(config_file: Path, overrides: Sequence[str], out: Path, seconds: float, rounds: int) -> Iterator[str]:
    """Measure all settings that have no row in ``out`` (JSON) yet, and write the table beside it.

    Args:
        seconds: no setting is begun, nor goes on, after so many.

    Yields:
        A line for each setting, once it is done.

    Raises:
        LaddError: for a configuration that cannot be read.
    """
    deadline = time.monotonic() + seconds
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    done = {(row["config"], row["setting"]) for row in rows}
    measurer = OneAfterAnother(config_file, rounds)
    try:
        for setting in settings(load(config_file, list(overrides))):
            if (str(config_file), setting.name) in done:
                continue
            given = [*_COMMON, *overrides, *setting.overrides]
            left = deadline - time.monotonic()
            measured = measurer.measure(given, left) if left > 0 else {"error": CUT_SHORT}
            if measured.get("error") != CUT_SHORT:
                rows.append({"config": str(config_file), "setting": setting.name, "overrides": given} | measured)
                out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            yield f"{setting.name}: {measured.get('error') or _per_sample(measured)}"
    finally:
        measurer.end()
    out.with_suffix(".md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


def _per_sample(row: Row) -> str:
    return f"{row['seconds'] / row['samples']:.3f} s per sample"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, with what the planner says of the same settings."""
    yield (
        "| configuration | setting | s per sample | without update | samples/s | of the matrix product | MFU "
        "| peak, GB | planned, GB | slowest phases, s |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|---|"
    costs: dict[str, Costs] = {}
    for row in rows:
        cells = [Path(row["config"]).stem, row["setting"]]
        cells += [row["error"], *[""] * 7] if "error" in row else _cells(row, costs)
        yield f"| {' | '.join(cells)} |"


def _cells(row: Row, known: dict[str, Costs]) -> list[str]:
    step = MeasuredStep.of(row)
    config = step.loaded
    networks = f"{config.teacher} {config.student} {config.kernels} {step.device}"
    costs = known.setdefault(networks, Costs(config, largest_bucket(config), step.device))
    flops = sum(flops_by_part(config, costs).values())
    planned = needs(config, costs, 1, config.micro_batch(1), workspace=0).total
    card = next((card for card in CARDS.values() if card.device == step.device), None)
    per_sample = row["seconds"] / step.samples
    slowest = sorted(step.phases, key=lambda name: -step.phases[name])[:5]
    return [
        f"{per_sample:.3f}",
        f"{step.passes:.3f}",
        f"{1 / per_sample:.2f}",
        f"{flops / step.passes / row['ceiling']:.0%}",
        f"{flops / step.passes / card.bf16:.0%}" if card else "",
        f"{step.peak / 1e9:.1f}" if step.peak else "",
        f"{planned / 1e9:.1f}",
        ", ".join(f"{name} {step.phases[name]:.3f}" for name in slowest),
    ]
