"""The step's settings on the card at hand, what is worth most first; and a table of them.

A row is written as soon as it is there, and a setting that has one of the same code and device is not measured again:
a call that is cut short loses what was under way, and the next one goes on.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from ladd_dist.config import Config, load
from ladd_dist.measuring.commits import commit_of
from ladd_dist.measuring.iteration import device_name
from ladd_dist.measuring.one_after_another import CUT_SHORT, OneAfterAnother, Row
from ladd_dist.planning.activations import HOW, checkpointed
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import MeasuredStep
from ladd_dist.planning.needs import needs
from ladd_dist.planning.plan import flops_by_part, largest_bucket
from ladd_dist.versions import version_of

_ROOT = Path(__file__).parents[2]
_RESULTS = "docs/benchmarks"
_PLACE = ("config", "setting", "device")
"""Of rows that have these in common, the newest is kept."""
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
    """Measure all settings that have no row of this call in ``out`` (JSON) yet, and write the table beside it.

    A row is of this call if device, overrides and commit are, where there is no repository also the day, and nothing
    went wrong. Settings that did go wrong come last, so that they take no time from others. A new row takes the place
    of an older one of the same configuration, setting and device.

    Args:
        seconds: no setting is begun, nor goes on, after so many.

    Yields:
        A line for each setting, once it is done.

    Raises:
        LaddError: for a configuration that cannot be read.
    """
    deadline = time.monotonic() + seconds
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    asked = _asked(config_file, overrides)
    failed = [row for row in asked if any("error" in old and _is_of(old, row) for old in rows)]
    done = [row for row in asked if any("error" not in old and _is_of(old, row) for old in rows)]
    measurer = OneAfterAnother(config_file, rounds)
    try:
        for row in sorted((row for row in asked if row not in done), key=failed.__contains__):
            left = deadline - time.monotonic()
            measured = measurer.measure(row["overrides"], left) if left > 0 else {"error": CUT_SHORT}
            if measured.get("error") != CUT_SHORT:
                _put(rows, row | measured)
                out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            yield f"{row['setting']}: {measured.get('error') or _per_sample(measured)}"
    finally:
        measurer.end()
    out.with_suffix(".md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


def _asked(config_file: Path, overrides: Sequence[str]) -> list[Row]:
    """Of every setting what its row says before anything is measured."""
    config = load(config_file, list(overrides))
    cuda = config.device != "cpu" and torch.cuda.is_available()
    call = {
        "device": device_name(torch.device("cuda", 0) if cuda else torch.device("cpu")),
        "commit": commit_of(_ROOT, _RESULTS),
        "date": _today(),
        "triton": version_of("triton"),
    }
    return [
        {
            "config": str(config_file),
            "setting": setting.name,
            "overrides": [*_COMMON, *overrides, *setting.overrides],
            **call,
        }
        for setting in settings(config)
    ]


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _is_of(old: Row, asked: Row) -> bool:
    """Whether a row is of the same code, device and overrides. Without a repository, code is taken to last a day."""
    same = (*_PLACE, "overrides", "commit", *(("date",) if asked["commit"] is None else ()))
    return all(old.get(key) == asked[key] for key in same)


def _put(rows: list[Row], new: Row) -> None:
    for index, old in enumerate(rows):
        if all(old.get(key) == new[key] for key in _PLACE):
            rows[index] = new
            return
    rows.append(new)


def _per_sample(row: Row) -> str:
    return f"{row['seconds'] / row['samples']:.3f} s per sample"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, with what the planner says of the same settings."""
    yield (
        "| configuration | setting | measured | s per sample | without update | samples/s | of the matrix product "
        "| MFU | peak, GB | planned, GB | slowest phases, s |"
    )
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|"
    costs: dict[str, Costs] = {}
    for row in rows:
        measured = ", ".join(row[key] for key in ("device", "date") if key in row)  # older errors have neither
        cells = [Path(row["config"]).stem, row["setting"], measured]
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
