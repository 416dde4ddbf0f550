"""Judge the student against its teacher."""

from ladd_dist.cli import Launch, parser, run, student_flags
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Draw held-out prompts with the guided teacher, the undistilled teacher and the student at few steps, and judge
them over all pictures and in each bucket: distances, diversity, detail, scores. Writes RUN_DIR/evaluation/.
Start it again to go on: batches that are drawn already are kept until it is done, also for another number of ranks.

  python launchers/evaluate.py --config configs/digits.yaml
"""


def main(launch: Launch, signals: Signals) -> None:
    """Write results and pictures."""
    from ladd_dist.checkpoints.lora import open_loras  # late: until they are imported, signals are heard already
    from ladd_dist.evaluation.evaluate import evaluate

    args, world = launch.args, launch.world
    loras = open_loras(args.lora, world, args.weights)
    evaluate(launch.config, world, args.checkpoint, args.weights, loras, launch.lock, signals)


if __name__ == "__main__":
    listening = Signals().listen()
    command = parser(_DESCRIPTION)
    student_flags(command)
    run(command, lambda launch: main(launch, listening), job="evaluate")
