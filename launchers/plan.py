"""Predict what a run needs and costs before it is paid for, and recommend how to run it."""

import argparse
from pathlib import Path

from ladd_dist.cli import parser
from ladd_dist.config import load
from ladd_dist.config.arguments import as_count, as_output, as_path, as_text, run_command
from ladd_dist.planning.cards import HOST_SECONDS, read_card

_DESCRIPTION = """\
Predict what a run needs and costs, from shapes alone: no GPU and no weights, of the teacher only the config.json of
transformer and vae. Memory by part, arithmetic, traffic, time of an iteration and what bounds it, hours, storage, the
dataset's cost; then the fastest settings that fit. All of it is a prediction: see docs/planning.md.

  python launchers/plan.py --config configs/sd35_large.yaml --gpu H100 --nodes 8 method.fake_pass=two_pass
  python launchers/plan.py --config configs/sd35_large.yaml --gpu RTX-4090 --gpus-per-node 1 --json plan.json
  python launchers/plan.py --config configs/sd35_large.yaml --gpu MyGPU:96,500,4000,450 --picture plan.png
  python launchers/plan.py --config configs/sd35_large.yaml --gpu H100 --gpu H200 --scale --picture scale.png
  python launchers/plan.py --config configs/sd35_large.yaml --gpu H100 --recomputation train.global_batch=8
"""


_PICTURES = (".png", ".svg", ".pdf")


def main(args: argparse.Namespace) -> None:
    """Print the prediction and the recommendation."""
    config, cards = load(args.config, args.overrides), [read_card(name) for name in args.gpu]
    from ladd_dist.jobs.prediction import predict  # late: torch takes seconds to import

    predict(config, cards, args)


def as_amount(argument: str) -> float:
    """A number above 0."""
    try:
        number = float(argument)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {argument}")
    return number


def as_picture(argument: str) -> Path:
    """A picture to write."""
    path = as_output(argument)
    if path.suffix not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{argument} must end in {' or '.join(_PICTURES)}")
    return path


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--gpu",
        type=as_text,
        required=True,
        action="append",
        metavar="NAME",
        help="a known type, or NAME:memory_GB,bf16_TFLOPs,memory_GBps,link_GBps; several for tables",
    )
    command.add_argument("--gpus-per-node", type=as_count, default=8, metavar="N", help="default: 8")
    command.add_argument("--nodes", type=as_count, default=1, metavar="N", help="default: 1")
    command.add_argument(
        "--nic",
        type=as_amount,
        default=50.0,
        metavar="GBps",
        help="GB/s between nodes for each GPU (default: 50, a 400 Gb/s port)",
    )
    command.add_argument(
        "--storage", type=as_amount, metavar="GBps", help="GB/s at which all ranks together read (default: enough)"
    )
    command.add_argument(
        "--host",
        type=as_amount,
        default=HOST_SECONDS * 1e6,
        metavar="us",
        help="microseconds that the host takes to launch an operator (default: %(default)g, as measured on one)",
    )
    command.add_argument(
        "--images", type=as_count, metavar="N", help="pictures of the dataset (default: by synthesis.prompts)"
    )
    command.add_argument(
        "--workspace",
        type=as_amount,
        default=4.0,
        metavar="GB",
        help="of a GPU for CUDA, NCCL and the allocator (default: 4)",
    )
    command.add_argument("--scale", action="store_true", help="1 to 4,096 GPUs instead, as a Markdown table")
    command.add_argument(
        "--measured",
        type=as_path,
        metavar="FILE",
        help="with --scale: also show the fastest row of this file of launchers/step.py that is of the same networks",
    )
    command.add_argument(
        "--recomputation",
        action="store_true",
        help="instead, as a Markdown table: memory and time as student and teacher keep or recompute activations",
    )
    command.add_argument("--json", type=as_output, metavar="FILE", help="also write all numbers")
    command.add_argument(
        "--picture", type=as_picture, metavar="FILE", help=f"also draw memory and time: {', '.join(_PICTURES)}"
    )
    return command


if __name__ == "__main__":
    run_command(command_line(), main)
