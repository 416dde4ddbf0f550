"""Predict what a run needs and costs before it is paid for, and recommend how to run it."""

import argparse
from pathlib import Path

from ladd_dist.checkpoints.room import checkpoint_bytes
from ladd_dist.cli import parser
from ladd_dist.config import Config, load
from ladd_dist.config.arguments import as_count, as_path, as_text, run_command
from ladd_dist.errors import LaddError
from ladd_dist.planning.advice import advise
from ladd_dist.planning.cards import HOST_SECONDS, read_card
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import fastest, read_steps
from ladd_dist.planning.picture import draw
from ladd_dist.planning.plan import largest_bucket, plan, synthesis
from ladd_dist.planning.scale import Row, draw_scale, markdown, scale
from ladd_dist.planning.table import advised, as_json, assumptions, table
from ladd_dist.planning.trade import trade

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


def main(args: argparse.Namespace) -> None:
    """Print the prediction and the recommendation."""
    config, cards = load(args.config, args.overrides), [read_card(name) for name in args.gpu]
    storage = args.storage * 1e9 if args.storage else None
    clusters = [
        Cluster(card, args.gpus_per_node, args.nodes, args.nic * 1e9, storage, args.host * 1e-6) for card in cards
    ]
    bucket, workspace = largest_bucket(config), int(args.workspace * 1e9)
    if args.measured and not args.scale:
        raise LaddError("--measured: only --scale shows it: add that")
    if args.scale:
        _print_scale(config, clusters, workspace, args)
        return
    if args.recomputation:
        for each in clusters:
            rows = trade(config, each, Costs(config, bucket, each.card.device), workspace)
            print("\n".join([f"\n{each.card.name} x {each.gpus}, predicted:\n", *rows]))
        return
    if len(clusters) > 1:
        raise LaddError("--gpu: several types are compared with --scale and --recomputation alone: give one")
    cluster = clusters[0]
    costs = Costs(config, bucket, cluster.card.device)
    given, why = None, ""
    try:
        given = plan(config, cluster, costs, workspace)
    except LaddError as error:
        why = f"As configured it cannot run ({error}). What is recommended below:\n"
    advice = advise(config, cluster, costs, workspace)
    made = (
        synthesis(config, cluster, costs, args.images or _images(config)) if args.images or _images(config) else None
    )
    checkpoint = checkpoint_bytes(config)
    shown = given or advice.plan
    print("\n".join([*assumptions(shown), why, *table(shown, made, checkpoint), "", *advised(advice, given)]))
    if args.json:
        args.json.write_text(as_json(given, advice, made, checkpoint), encoding="utf-8")
    if args.picture:
        draw(({"configured": given} if given else {}) | {"recommended": advice.plan}, args.picture)


def _print_scale(config: Config, clusters: list[Cluster], workspace: int, args: argparse.Namespace) -> None:
    """Every card's table, and the picture of all of them."""
    steps = read_steps(args.measured) if args.measured else []
    costs = {each.card.name: Costs(config, largest_bucket(config), each.card.device) for each in clusters}
    measured = {
        each.card.name: run for each in clusters if (run := fastest(steps, config, each.card, costs[each.card.name]))
    }
    if args.measured and not measured:
        raise LaddError(f"--measured {args.measured}: no row is of these networks on {' or '.join(costs)}")
    by_card: dict[str, list[Row]] = {}
    for each in clusters:
        name = each.card.name
        by_card[name] = list(scale(config, each, costs[name], workspace))
        print("\n".join([f"\n{name}, predicted:\n", *markdown(by_card[name], measured.get(name))]), flush=True)
    if args.picture:
        draw_scale(by_card, measured, args.picture)


def _images(config: Config) -> int:
    """What synthesis would draw, if its prompts are there."""
    prompts = Path(config.synthesis.prompts)
    if not prompts.is_file():
        return 0
    lines = sum(bool(line.strip()) for line in prompts.read_text(encoding="utf-8").splitlines())
    return lines * config.synthesis.images_per_prompt


def as_amount(argument: str) -> float:
    """A number above 0."""
    try:
        number = float(argument)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {argument}")
    return number


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
    command.add_argument("--json", type=as_path, metavar="FILE", help="also write all numbers")
    command.add_argument("--picture", type=as_path, metavar="FILE", help="also draw memory and time, as PNG")
    return command


if __name__ == "__main__":
    run_command(command_line(), main)
