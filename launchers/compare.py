"""Does a change change numbers? Two short trainings of two commits or two settings, compared step by step."""

import argparse
import json
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_count, as_path, as_text
from ladd_dist.errors import LaddError
from ladd_dist.log import log
from ladd_dist.measuring.commits import checkout
from ladd_dist.measuring.compare import check_methods, compare_runs
from ladd_dist.measuring.compared import ComparedRun, split_overrides

_DESCRIPTION = """\
Train twice, from two commits or with two settings, and say whether losses and parameters are the same. The dataset
must be there (launchers/synthesize.py). Overrides at the end of the line are for both sides; iterations, logging,
checkpoints, previews, tracking and run_dir are set by the comparison.

  python launchers/compare.py --config configs/tiny_cpu.yaml --left-commit HEAD
  python launchers/compare.py --config configs/tiny_cpu.yaml --left-commit main --right-commit topic --steps 100
  python launchers/compare.py --config configs/tiny_cpu.yaml --tolerance 1e-2 \\
      --right "engine=fsdp2 teacher.placement=shard" --right-ranks 2 \\
      student_optimizer.eps=1e-4 head_optimizer.eps=1e-4

Exit code: 0 all the same within the tolerance, 1 different, 2 no comparison (bad input, or a training that failed).
"""
_ROOT = Path(__file__).resolve().parent.parent
_NAMES = ("left", "right")
_DIFFERENT = 1


def main(launch: Launch) -> None:
    """Check both runs, train one after the other, compare."""
    if launch.world.size > 1:
        raise LaddError("compare.py starts the ranks itself: run it with plain python and pass --left-ranks N")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # or trainings and trees stay behind
    args = launch.args
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(args.keep))
        trainings = [_compared(args, name, stack, folder / name) for name in _NAMES]
        configs = [training.check() for training in trainings]
        check_methods(*(config["method"].get("name", "ladd") for config in configs))  # older commits know one alone
        for training, config in zip(trainings, configs, strict=True):
            log(str(training))
            training.train(config)
        left, right = (folder / name for name in _NAMES)
        comparison = compare_runs(left, right, args.steps, args.tolerance)
    print(comparison.table())
    if not comparison.accepted:
        sys.exit(_DIFFERENT)


def _compared(args: argparse.Namespace, name: str, stack: ExitStack, run_dir: Path) -> ComparedRun:
    given = vars(args)
    commit = given[f"{name}_commit"]
    tree = stack.enter_context(checkout(_ROOT, commit))
    own = _own(run_dir, args.steps, tree)
    chosen = split_overrides(name, given[name], {setting.partition("=")[0] for setting in own})
    return ComparedRun(name, commit, tree, str(args.config), [*args.overrides, *chosen, *own], given[f"{name}_ranks"])


def _own(run_dir: Path, steps: int, tree: Path) -> list[str]:
    """Settings of the comparison: every step is logged, the last one saved, and nothing else is written."""
    return [
        f"run_dir={json.dumps(str(run_dir))}",
        f"train.iterations={steps}",
        "train.log_every=1",
        f"train.checkpoint_every={steps}",
        "train.preview_every=0",
        "tracking.wandb='off'",  # quoted for commits that read a bare off as false
        *(
            ["tracking.page_every=0"] if (tree / "ladd_dist/training/page.py").exists() else []
        ),  # older ones refuse it
    ]


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    """Where both runs are written: a folder to keep, which must be new or empty, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="ladd-compare-") as temporary:
            yield Path(temporary)
        return
    folder = Path(keep).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LaddError(
            f"--keep {keep} exists and is not an empty folder: its runs would be continued, name a new one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _tolerance(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError("must be a number from 0 up")
    return float(text)


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION)
    for name in _NAMES:
        command.add_argument(
            f"--{name}", type=as_text, metavar="OVERRIDES", default="", help=f'"key=value key=value", {name} only'
        )
        command.add_argument(f"--{name}-commit", metavar="REF", help="code to run (default: the working tree)")
        command.add_argument(f"--{name}-ranks", metavar="N", type=as_count, default=1, help="processes (default: 1)")
    command.add_argument("--steps", type=as_count, default=20, help="iterations of both (default: 20)")
    command.add_argument(
        "--tolerance", type=_tolerance, default=0.0, help="largest relative difference (default: 0, bit-identical)"
    )
    command.add_argument("--keep", type=as_path, metavar="DIR", help="keep both run folders there")
    return command


if __name__ == "__main__":
    run(command_line(), main)
