"""What the guard tells: runs of the digits made sick on purpose, and healthy ones, watched by it.

Every run is small (one bucket, 12 samples an iteration, 100 iterations), is a folder of its own in ``--out``, and is
made once: the same command goes on where it was stopped, and several commands with other ``--seeds`` or ``--kinds``
may share a folder. It ends with a table, ``study.json`` and ``study.png`` of all runs that are there.

  python -m ladd_dist.measuring.guard_study --out runs/guard
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladd_dist.config import Config, load
from ladd_dist.config.arguments import as_path
from ladd_dist.digits import TRAIN_PROMPTS
from ladd_dist.distributed.world import World
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError
from ladd_dist.log import log, setup
from ladd_dist.measuring.sickness import HEALTHY, SICKNESSES, train
from ladd_dist.methods.ladd.sample import settings
from ladd_dist.methods.registry import method_of
from ladd_dist.training.guard import last_alarms
from ladd_dist.training.rules import RULES, alarm
from ladd_dist.training.tracking import Row, read_metrics
from ladd_dist.training.trainer import Trainer

ONSET, ITERATIONS, AFTER = 40, 100, 6
"""When late sicknesses begin, how long runs are at most, and how long they go on after an alarm."""
_DONE, _WARM = "done", 20
_WIDE = 3.0
"""Numbers beyond this are drawn on a logarithmic axis."""
_SMALL = (
    "device=cpu",
    "synthesis.buckets=[32x32]",
    "synthesis.images_per_prompt=8",
    f"train.iterations={ITERATIONS}",
    "train.global_batch=12",
    "train.log_every=2",
    f"train.checkpoint_every={ITERATIONS}",
    "train.preview_every=0",
    "head_optimizer.decay=constant",
    "head_optimizer.final_lr_ratio=0",
    "student_optimizer.decay=constant",
    "student_optimizer.final_lr_ratio=0",
)
_ALONE = World(0, 1, 0, torch.device("cpu"))
_ORANGE, _SLATE, _GREY = "#c2410c", "#4a6785", "#7b8691"


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        onset: iterations before it was made sick.
        caught: iteration of its first alarm; None if there was none.
        rules: which alarmed then.
    """

    kind: str
    seed: int
    onset: int
    iterations: int
    caught: int | None
    rules: list[str]


def make(base: Path, out: Path, kind: str, seed: int) -> None:
    """Train one run, to its end or to some iterations after the guard's first alarm, unless it is there."""
    run_dir = out / f"{kind}-{seed}"
    if (run_dir / _DONE).exists():
        return
    sickness = SICKNESSES[kind]
    healthy = _config(base, out, run_dir, seed)
    rates = [f"{key}.lr={factor * getattr(healthy, key).lr}" for key, factor in sickness.rates.items()]
    trainer = Trainer(_config(base, out, run_dir, seed, *rates), _ALONE)
    try:
        for done in train(trainer, sickness, ONSET):
            if (first := min(last_alarms(run_dir, done).values(), default=done)) + AFTER <= done:
                log(f"{kind} {seed}: caught at iteration {first}")
                break
    except LaddError as error:  # the trainer's own limit on iterations that are not finite
        log(f"{kind} {seed}: {error}")
    (run_dir / _DONE).touch()


def _config(base: Path, out: Path, run_dir: Path, seed: int, *overrides: str) -> Config:
    places = [f"run_dir={run_dir}", f"data.path={out / 'latents'}", f"synthesis.prompts={out / 'prompts.jsonl'}"]
    # A warm-up of the student's times is shorter, as the run is; where there is none, none is made.
    warm = min(_WARM, settings(load(base)).warmup_iterations)
    return load(base, [*_SMALL, f"method.warmup_iterations={warm}", *places, f"seed={seed}", *overrides])


def prepare(base: Path, out: Path) -> None:
    """The dataset, of single digits."""
    lines = TRAIN_PROMPTS.read_text(encoding="utf-8").splitlines()
    out.mkdir(parents=True, exist_ok=True)
    chosen = "".join(f"{line}\n" for line in lines if json.loads(line)["bucket"] == "32x32")
    (out / "prompts.jsonl").write_text(chosen, encoding="utf-8")
    synthesize(_config(base, out, out, 0), _ALONE)


def first_alarm(config: Config, rows: list[Row]) -> tuple[int | None, list[str]]:
    """The iteration of the first alarm, and the rules that alarm then; None and none if all is well."""
    milestones = method_of(config).milestones(config)
    for end, row in enumerate(rows, 1):
        since = max((at for at in milestones if at <= row["iteration"]), default=0)
        if rules := [name for name, rule in RULES.items() if alarm(name, rule, rows[:end], since)]:
            return row["iteration"], rules
    return None, []


def outcomes(base: Path, out: Path) -> list[Outcome]:
    """Of all runs that are done, healthy ones first."""
    found = []
    for kind, sickness in SICKNESSES.items():
        for done in sorted(out.glob(f"{kind}-*/{_DONE}"), key=lambda path: int(path.parent.name.rsplit("-", 1)[1])):
            seed, rows = int(done.parent.name.rsplit("-", 1)[1]), read_metrics(done.parent)
            alarmed = first_alarm(_config(base, out, done.parent, seed), rows)
            found.append(Outcome(kind, seed, ONSET if sickness.late else 0, rows[-1]["iteration"], *alarmed))
    return found


def table(found: Iterable[Outcome]) -> str:
    """A line for each run."""
    lines = []
    for o in found:
        told = f"caught {o.caught - o.onset} iterations after: {', '.join(o.rules)}" if o.caught else "no alarm"
        lines.append(f"{o.kind:<15}{o.seed:>4}  {told}, of {o.iterations}")
    return "\n".join(lines)


def draw(out: Path, found: list[Outcome]) -> Figure:
    """A panel for each sickness: the number that told it, in its runs and in the healthy ones."""
    kinds = [kind for kind in SICKNESSES if kind != HEALTHY and any(o.kind == kind for o in found)]
    figure = Figure(figsize=(11, 2.4 * -(-len(kinds) // 2)), dpi=130, layout="constrained", facecolor="white")
    for axes, kind in zip(figure.subplots(-(-len(kinds) // 2), 2, squeeze=False).flat, kinds, strict=False):
        _panel(axes, out, kind, found)
    return figure


def _panel(axes: Axes, out: Path, kind: str, found: list[Outcome]) -> None:
    sick = [o for o in found if o.kind == kind]
    rule = RULES[next((o.rules[0] for o in sick if o.rules), "blurred")]
    axes.set_title(f"{SICKNESSES[kind].what}: {rule.metric}", loc="left", fontsize=9, fontweight="bold")
    greatest = 0.0
    for o in [o for o in found if o.kind == HEALTHY] + sick:
        rows = [row for row in read_metrics(out / f"{o.kind}-{o.seed}") if rule.metric in row]
        x, y = [row["iteration"] for row in rows], [_number(row, rule.metric) for row in rows]
        greatest = max([greatest, *y])
        healthy = o.kind == HEALTHY
        width, alpha = (0.7, 0.6) if healthy else (1.4, 1)
        dot = "." if len(x) == 1 else ""  # recorded once
        axes.plot(x, y, dot + "-", color=_SLATE if healthy else _ORANGE, lw=width, alpha=alpha)
        if not healthy and o.caught is not None and o.caught in x:
            axes.plot(o.caught, y[x.index(o.caught)], "o", color=_ORANGE, ms=6, mec="white")
    if sick[0].onset:
        axes.axvline(sick[0].onset, color=_GREY, lw=1, ls=":")
    if rule.of == "number":
        axes.axhline(rule.above if rule.above is not None else rule.below, color=_GREY, lw=1, ls="--")  # type: ignore[arg-type]
    if greatest > _WIDE:
        axes.set_yscale("log")
    axes.set_xlim(0, 1.05 * ITERATIONS)
    axes.spines[["top", "right"]].set_visible(False)


def _number(row: Row, metric: str) -> float:
    value = row[metric]
    return sum(value) / len(value) if isinstance(value, list) else value


def main() -> None:
    """Make what is not there, then report."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.add_argument("--config", type=as_path, default=Path("configs/tiny_cpu.yaml"), help="of healthy runs")
    command.add_argument("--out", type=as_path, default=Path("runs/guard"), help="folder of all runs")
    command.add_argument("--seeds", type=int, nargs="*", default=range(3), help="of sick runs (default: 0 1 2)")
    command.add_argument(
        "--healthy", type=int, nargs="*", default=range(10), help="of healthy ones (default: 0 to 9)"
    )
    command.add_argument("--kinds", nargs="*", choices=list(SICKNESSES), default=list(SICKNESSES))
    args = command.parse_args()
    if (name := load(args.config).method.name) != "ladd":
        command.error(
            f"{args.config} has method.name={name}: runs are made sick in their discriminator, name one of ladd"
        )
    setup(_ALONE)
    prepare(args.config, args.out)
    for kind in args.kinds:
        for seed in args.healthy if kind == HEALTHY else args.seeds:
            make(args.config, args.out, kind, seed)
    found = outcomes(args.config, args.out)
    (args.out / "study.json").write_text(json.dumps([asdict(o) for o in found], indent=1) + "\n", encoding="utf-8")
    draw(args.out, found).savefig(args.out / "study.png")
    print(table(found))


if __name__ == "__main__":
    main()
