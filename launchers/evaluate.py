"""Judge the student against its teacher."""

from ladd_dist.checkpoints.lora import open_loras
from ladd_dist.cli import Launch, parser, run, student_flags
from ladd_dist.evaluation.evaluate import evaluate

_DESCRIPTION = """\
Draw held-out prompts with the guided teacher, the undistilled teacher and the student at few steps, and judge
them over all pictures and in each bucket: distances, diversity, detail, scores. Writes RUN_DIR/evaluation/.

  python launchers/evaluate.py --config configs/tiny_cpu.yaml
"""


def main(launch: Launch) -> None:
    """Write results and pictures."""
    args, world = launch.args, launch.world
    evaluate(launch.config, world, args.checkpoint, args.weights, open_loras(args.lora, world, args.weights))


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    student_flags(command)
    run(command, main, job="evaluate")
