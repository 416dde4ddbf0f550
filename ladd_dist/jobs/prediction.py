"""The prediction that launchers/plan.py prints."""

import argparse
from pathlib import Path

from ladd_dist.checkpoints.room import checkpoint_bytes
from ladd_dist.config import Config
from ladd_dist.errors import LaddError
from ladd_dist.planning.advice import advise
from ladd_dist.planning.cards import Card
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.measured import fastest, read_steps
from ladd_dist.planning.picture import draw
from ladd_dist.planning.plan import largest_bucket, plan, synthesis
from ladd_dist.planning.scale import Row, draw_scale, markdown, scale
from ladd_dist.planning.table import advised, as_json, assumptions, table
from ladd_dist.planning.trade import trade


def predict(config: Config, cards: list[Card], args: argparse.Namespace) -> None:
    """Print what a run needs and costs on each card, and what is recommended; write what the flags name.

    Args:
        args: the flags of launchers/plan.py.

    Raises:
        LaddError: if flags do not go together, or nothing fits.
    """
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
