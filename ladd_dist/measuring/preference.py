"""What preference tuning does to a distilled student of the digits: stroke width with and without adapters.

Adapters are trained on the teacher, as LADD's paper does, or on the student itself; over ranks and seeds. Every
training is a run of its own in ``--out``, and goes on where it was stopped.

  python -m ladd_dist.measuring.preference --student runs/demo --pairs runs/dpo/pairs --out runs/preference
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.lora import open_loras
from ladd_dist.checkpoints.student import load_student, open_checkpoint
from ladd_dist.config import Config, load
from ladd_dist.config.arguments import as_count, as_path
from ladd_dist.data.prompts import PromptEntry, read_prompts
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.distributed.world import World
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.drawing.scorers import scorer_of
from ladd_dist.log import log, progress, setup
from ladd_dist.models.backbone import Backbone
from ladd_dist.training.trainer import Trainer

_TUNING = "configs/tiny_dpo.yaml"
_STEPS = (4, 1)
_ORANGE, _SLATE = "#c2410c", "#4a6785"


@dataclass(frozen=True)
class Variant:
    """One training of adapters: on the ``teacher`` or the ``student``."""

    base: str
    rank: int
    seed: int

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.base}-rank{self.rank}-seed{self.seed}"


@dataclass(frozen=True)
class Score:
    """What a student's pictures are like: mean stroke width in pixels, and the share of prompts that can be read."""

    steps: int
    stroke: float
    read: float

    def __str__(self) -> str:
        return f"{self.steps} steps {self.stroke:.3f} px {self.read:.1%}"


class Scoring:
    """Draws the same held-out prompts with the same noise for every student."""

    def __init__(self, config: Config, world: World, samples: int) -> None:
        self._config, self._pipeline = config, Pipeline(config, world.device)
        self._scorer, self._judge = scorer_of("stroke"), DigitJudge(world.device)
        once = read_prompts(config.evaluation.prompts, config.synthesis.buckets)
        self._entries = [
            PromptEntry(i, once[i % len(once)].prompt, once[i % len(once)].bucket) for i in range(samples)
        ]

    def __call__(self, student: Backbone) -> list[Score]:
        """In 4 steps and in one."""
        return [self._score(student, steps) for steps in _STEPS]

    def _score(self, student: Backbone, steps: int) -> Score:
        strokes, read = list[float](), list[bool]()
        for rows in self._batches():
            encoded = self._pipeline.encode_entries(rows, "preference")
            with torch.no_grad():
                pictures = self._pipeline.decode(self._pipeline.student(student, encoded, steps))
            prompts = [row.prompt for row in rows]
            strokes += self._scorer(prompts, pictures).tolist()
            right = self._judge.reads_prompt(pictures, prompts)
            assert right is not None
            read += right.tolist()
        return Score(steps, fmean(strokes), fmean(read))

    def _batches(self) -> Iterator[list[PromptEntry]]:
        size = self._config.sampling.batch
        for bucket in dict.fromkeys(entry.bucket for entry in self._entries):
            rows = [entry for entry in self._entries if entry.bucket == bucket]
            yield from (rows[start : start + size] for start in range(0, len(rows), size))


def train(variant: Variant, args: argparse.Namespace, exported: Path, world: World) -> str:
    """Train adapters; returns the run's folder."""
    run_dir = str(args.out / variant.name)
    overrides = [f"run_dir={run_dir}", f"data.path={args.pairs}", f"seed={variant.seed}", "device=cpu"]
    overrides += [f"data.shuffle_seed={variant.seed}", f"student.lora.rank={variant.rank}"]
    if variant.base == "student":
        overrides += [f"student.path={exported}", "method.noise_levels=student_times"]
    Trainer(load(_TUNING, [*overrides, *args.overrides]), world).run()
    return run_dir


def main() -> None:
    """Train what is not trained yet, score everything, write ``preference.json`` and ``preference.png``."""
    args, world = _arguments(), World(0, 1, 0, torch.device("cpu"))
    setup(world)
    config = load(args.student / "config.yaml", ["device=cpu"])
    checkpoint = open_checkpoint(config, world)
    exported = args.out / "student"
    if not exported.exists():
        example = read_prompts(config.evaluation.prompts, config.synthesis.buckets)[0]
        export(config, checkpoint, exported, "ema", torch.float32, example)
    variants = [Variant("teacher", rank, seed) for rank in args.ranks for seed in range(args.seeds)]
    variants += [Variant("student", args.ranks[len(args.ranks) // 2], seed) for seed in range(args.seeds)]
    scoring = Scoring(config, world, args.samples)
    plain = scoring(load_student(config, checkpoint, "ema", torch.float32))
    rows, bar = [], progress("adapters", len(variants), unit="run", world=world)
    for variant in variants:
        loras = open_loras([[train(variant, args, exported, world)]], world, "ema")
        scores = scoring(load_student(config, checkpoint, "ema", torch.float32, loras))
        rows.append({**asdict(variant), "scores": [asdict(score) for score in scores]})
        log(f"{variant.name}: {', '.join(map(str, scores))}; without: {', '.join(map(str, plain))}")
        bar.update()
    bar.close()
    result = {"samples": args.samples, "plain": [asdict(score) for score in plain], "adapters": rows}
    (args.out / "preference.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, args.out / "preference.png")


def draw(result: dict[str, Any], path: Path) -> None:
    """Stroke width and accuracy over ranks: a dot for each seed, a line through the means."""
    figure = Figure(figsize=(6.4, 5), dpi=170, layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(_STEPS), sharex=True, sharey="row")
    for column, steps in enumerate(_STEPS):
        for row, (key, factor) in enumerate((("stroke", 1), ("read", 100))):
            _panel(axes[row][column], result, column, key, factor)
        axes[0][column].set_title(f"{steps} step{'s' * (steps > 1)}", loc="left")
        axes[1][column].set_xlabel("rank of the adapters")
    axes[0][0].set_ylabel("mean stroke width (pixels)")
    axes[1][0].set_ylabel("prompts read (%)")
    axes[0][0].legend(frameon=False, loc="upper left", fontsize=8.5)
    figure.savefig(path)


def _panel(axes: Axes, result: dict[str, Any], column: int, key: str, factor: float) -> None:
    axes.axhline(factor * result["plain"][column][key], color="#7b8691", ls="--", lw=1, label="student without")
    for base, color in (("teacher", _ORANGE), ("student", _SLATE)):
        mine = [row for row in result["adapters"] if row["base"] == base]
        ranks = sorted({row["rank"] for row in mine})
        values = [[factor * row["scores"][column][key] for row in mine if row["rank"] == rank] for rank in ranks]
        for rank, seeds in zip(ranks, values, strict=True):
            axes.plot([rank] * len(seeds), seeds, "o", color=color, ms=4, alpha=0.5)
        axes.plot(
            ranks, [fmean(seeds) for seeds in values], "-o", color=color, lw=1.6, label=f"trained on the {base}"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted({row["rank"] for row in result["adapters"]}), map(str, ticks))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ec", lw=0.8)
    axes.set_axisbelow(True)


def _arguments() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--student", type=as_path, required=True, metavar="RUN", help="a finished distillation's folder"
    )
    command.add_argument("--pairs", type=as_path, required=True, metavar="FOLDER", help="pairs ranked by `stroke`")
    command.add_argument("--out", type=as_path, required=True, metavar="FOLDER", help="for runs, numbers and figure")
    command.add_argument("--ranks", type=as_count, nargs="+", default=[4, 16, 64], help="of the adapters")
    command.add_argument("--seeds", type=as_count, default=3, help="trainings of each kind")
    command.add_argument("--samples", type=as_count, default=600, help="pictures for each score")
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help=f"of {_TUNING}")
    return command.parse_intermixed_args()


if __name__ == "__main__":
    main()
