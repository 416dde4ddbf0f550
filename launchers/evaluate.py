"""Judge the student against its teacher."""

from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_path
from ladd_dist.evaluation.evaluate import evaluate

_DESCRIPTION = """\
Draw held-out prompts with the guided teacher, the undistilled teacher and the student at few steps, and judge
them: Frechet distances and how often the prompt can be read. Writes RUN_DIR/evaluation/.

  python launchers/evaluate.py --config configs/tiny_cpu.yaml
"""


def main(launch: Launch) -> None:
    """Write results and pictures."""
    evaluate(launch.config, launch.world, launch.args.checkpoint, launch.args.weights)


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    run(command, main, job="evaluate")
