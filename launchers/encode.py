"""Make a training set of given pictures."""

import argparse

from ladd_dist.cli import Launch, parser, run
from ladd_dist.jobs.arguments import encode_flags
from ladd_dist.jobs.fit import check_latents
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Encode a table's pictures with the teacher's autoencoder into data.path, as launchers/synthesize.py writes what the
teacher draws: one MDS stream per aspect-ratio bucket and a manifest, sharded over ranks. Start it again to go on:
finished parts are kept. The table is a .jsonl or .csv with a prompt and a picture in each row. See docs/pairs.md.

  python launchers/encode.py --config configs/digits.yaml --pictures pictures.jsonl data.path=runs/real
"""


def main(launch: Launch, signals: Signals) -> None:
    """Write the dataset."""
    from ladd_dist.drawing.given import table_pictures  # late: until it is imported, signals are heard already

    check_latents(launch.config)
    table_pictures(launch.config, launch.args.pictures, launch.world, launch.lock, signals)


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION)
    encode_flags(command)
    return command


if __name__ == "__main__":
    listening = Signals().listen()
    run(command_line(), lambda launch: main(launch, listening), holds="data.path", job="encode")
