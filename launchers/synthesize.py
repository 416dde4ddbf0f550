"""Draw the training set: the guided teacher's latents in MDS shards."""

from ladd_dist.cli import Launch, parser, run
from ladd_dist.jobs.fit import check_latents
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Draw the training latents with the guided teacher into data.path: one MDS stream per aspect-ratio bucket and a
manifest. Shards over ranks under torchrun. Start it again to go on: finished parts are kept.

  python launchers/synthesize.py --config configs/digits.yaml
  torchrun --nproc-per-node 8 launchers/synthesize.py --config configs/sd35_large.yaml
"""


def main(launch: Launch, signals: Signals) -> None:
    """Write the dataset."""
    from ladd_dist.drawing.synthesis import (
        synthesize,  # late: until it is imported, many seconds, signals are heard already
    )

    check_latents(launch.config)
    synthesize(launch.config, launch.world, launch.lock, signals)


if __name__ == "__main__":
    listening = Signals().listen()
    run(parser(_DESCRIPTION), lambda launch: main(launch, listening), holds="data.path", job="synthesize")
