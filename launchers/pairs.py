"""Make a dataset of preference pairs, of given pictures or of the teacher's own."""

import argparse

from ladd_dist.cli import Launch, parser, run
from ladd_dist.jobs.arguments import PAIRS, PICTURES, check_pairs, pairs_flags
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Write preference pairs into data.path, as launchers/synthesize.py writes latents: one MDS stream per aspect-ratio
bucket and a manifest, sharded over ranks. Start it again to go on: finished parts are kept. See docs/pairs.md.

table: the pairs of a .jsonl or .csv of prompts and pictures, encoded by the teacher's autoencoder.
rank: some pictures of every prompt of synthesis.prompts by the guided teacher; a scorer tells best and worst.

  python launchers/pairs.py --config configs/digits.yaml table --pairs preferences.jsonl data.path=runs/pairs
  python launchers/pairs.py --config configs/digits.yaml rank --scorer stroke data.path=runs/pairs
"""


def main(launch: Launch, signals: Signals) -> None:
    """Write the dataset."""
    args, config, world = launch.args, launch.config, launch.world
    check_pairs(args)
    if args.kind == "table":
        from ladd_dist.drawing.given import table_pairs  # late: until it is imported, signals are heard already

        table_pairs(config, args.pairs, world, launch.lock, signals)
    else:
        from ladd_dist.drawing.ranking import rank_pairs

        rank_pairs(config, args.scorer, args.pictures or PICTURES, world, launch.lock, signals)


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION, kinds=list(PAIRS))
    pairs_flags(command)
    return command


if __name__ == "__main__":
    listening = Signals().listen()
    run(command_line(), lambda launch: main(launch, listening), holds="data.path", job="pairs")
