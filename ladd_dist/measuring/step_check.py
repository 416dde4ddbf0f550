"""The step's settings on the card at hand, one process each, what is worth most first; and a table of them.

A row is written as soon as it is there, and a setting that has one is not measured again: a call that is cut short
loses what was under way, and the next one goes on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladd_dist.config import Config, load
from ladd_dist.measuring.iteration import UPDATES
from ladd_dist.planning.activations import HOW, checkpointed
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.needs import needs
from ladd_dist.planning.plan import flops_by_part, largest_bucket

Row = dict[str, Any]
"""An `Iteration` with its setting's name and overrides, or ``error`` in place of the iteration."""
_COMMON = ("train.global_batch=4", "train.log_every=1")
"""Enough to tell the passes' time from the update's."""
_ONE = ("train.global_batch=1", "train.micro_batch=1", "method.fake_pass=shared")
_PYTORCH = ("kernels.attention=cudnn", "kernels.heads=torch")

_CUT_SHORT = "out of time: the same command goes on here"


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
    others = {what: how for what, how in HOW.items() if what != checkpointed(config, network)}
    found = [
        Setting("as configured", ()),
        Setting("one sample, shared fake pass", _ONE),
        Setting("compiled", compiled),
        Setting("PyTorch's kernels", _PYTORCH),
        *(Setting(f"{network}'s activations {how}", (f"{key}={str(what).lower()}",)) for what, how in others.items()),
    ]
    if not base:
        float8 = ("teacher.float8=true",)
        both = (*float8, "student.float8=true")
        found[2:2] = [
            Setting("float8", float8),
            Setting("float8, compiled", (*float8, *compiled)),
            Setting("float8, the student's too, compiled", (*both, *compiled)),
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
    for setting in settings(load(config_file, list(overrides))):
        left = deadline - time.monotonic()
        if (str(config_file), setting.name) in done:
            continue
        if left <= 0:
            yield f"{setting.name}: {_CUT_SHORT}"
            continue
        given = [*_COMMON, *overrides, *setting.overrides]
        row: Row = {"config": str(config_file), "setting": setting.name, "overrides": given}
        row |= _measure(config_file, given, left, rounds)
        if row.get("error") != _CUT_SHORT:
            rows.append(row)
            out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        yield f"{setting.name}: {row.get('error') or _per_sample(row)}"
    out.with_suffix(".md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


def _per_sample(row: Row) -> str:
    return f"{row['seconds'] / row['samples']:.3f} s per sample"


def _measure(config_file: Path, overrides: Sequence[str], seconds: float, rounds: int) -> Row:
    """In a process of its own: one that fails, such as for lack of memory, takes no other along."""
    command = [sys.executable, "launchers/bench.py", "--config", str(config_file), "--what", "iteration"]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, "--rounds", str(rounds), *overrides],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"error": _CUT_SHORT}
    if done.returncode:
        sys.stderr.write(done.stderr)  # all of it: the row has room for the last line alone
        return {"error": (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1][:300]}
    measured: Row = json.loads(done.stdout.splitlines()[-1])
    return measured


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
    config = load(row["config"], row["overrides"])
    networks = f"{config.teacher} {config.student.lora} {row['device']}"
    costs = known.setdefault(networks, Costs(config, largest_bucket(config), row["device"]))
    flops = sum(flops_by_part(config, costs).values())
    planned = needs(config, costs, 1, config.micro_batch(1), workspace=0).total
    card = next((card for card in CARDS.values() if card.device == row["device"]), None)
    phases: Mapping[str, float] = row["phases"]
    per_sample = row["seconds"] / row["samples"]
    passes = sum(spent for name, spent in phases.items() if name not in UPDATES) / row["samples"]
    slowest = sorted(phases, key=lambda name: -phases[name])[:5]
    return [
        f"{per_sample:.3f}",
        f"{passes:.3f}",
        f"{1 / per_sample:.2f}",
        f"{flops / passes / row['ceiling']:.0%}",
        f"{flops / passes / card.bf16:.0%}" if card else "",
        f"{row['peak'] / 1e9:.1f}" if row["peak"] else "",
        f"{planned / 1e9:.1f}",
        ", ".join(f"{name} {phases[name]:.3f}" for name in slowest),
    ]
