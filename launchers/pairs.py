"""Make a dataset of preference pairs, of given pictures or of the teacher's own."""

import argparse

from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_count, as_path, as_text
from ladd_dist.errors import LaddError
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Write preference pairs into data.path, as launchers/synthesize.py writes latents: one MDS stream per aspect-ratio
bucket and a manifest, sharded over ranks. Start it again to go on: finished parts are kept. See docs/pairs.md.

table: the pairs of a .jsonl or .csv of prompts and pictures, encoded by the teacher's autoencoder.
rank: some pictures of every prompt of synthesis.prompts by the guided teacher; a scorer tells best and worst.

  python launchers/pairs.py --config configs/digits.yaml table --pairs preferences.jsonl data.path=runs/pairs
  python launchers/pairs.py --config configs/digits.yaml rank --scorer stroke data.path=runs/pairs
"""
_PICTURES = 4
_FLAGS = {"table": ("pairs",), "rank": ("scorer", "pictures")}


def main(launch: Launch, signals: Signals) -> None:
    """Write the dataset."""
    args, config, world = launch.args, launch.config, launch.world
    _check_flags(args)
    if args.kind == "table":
        from ladd_dist.drawing.given import table_pairs  # late: until it is imported, signals are heard already

        table_pairs(config, args.pairs, world, launch.lock, signals)
    else:
        from ladd_dist.drawing.ranking import rank_pairs

        rank_pairs(config, args.scorer, args.pictures or _PICTURES, world, launch.lock, signals)


def _check_flags(args: argparse.Namespace) -> None:
    for kind, flags in _FLAGS.items():
        if kind != args.kind and (given := [flag for flag in flags if getattr(args, flag) is not None]):
            raise LaddError(f"--{given[0]} is for '{kind}': leave it out of '{args.kind}'")
    if getattr(args, needed := _FLAGS[args.kind][0]) is None:
        raise LaddError(f"'{args.kind}' needs --{needed}: see --help")


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION, kinds=list(_FLAGS))
    command.add_argument("--pairs", type=as_path, metavar="FILE", help="of table: a .jsonl or .csv")
    command.add_argument(
        "--scorer",
        type=as_text,
        metavar="NAME",
        help="of rank: stroke (for the digits), clip:FOLDER or MODULE:FUNCTION",
    )
    command.add_argument(
        "--pictures", type=as_count, metavar="K", help=f"of rank: to draw of each prompt (default: {_PICTURES})"
    )
    return command


if __name__ == "__main__":
    listening = Signals().listen()
    run(command_line(), lambda launch: main(launch, listening), holds="data.path", job="pairs")
