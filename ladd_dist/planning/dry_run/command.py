"""``--dry-run`` of a launcher: its flags, and what is said of a dry run."""

import argparse
import os

from ladd_dist.config import Config
from ladd_dist.config.arguments import as_count
from ladd_dist.errors import LaddError
from ladd_dist.planning.dry_run.card import KNOWN, FakeCard, fake_card
from ladd_dist.planning.dry_run.cuda import pretend

_GPU = "H100"
_MICRO_BATCHES = 2
"""Enough to see what the second one adds; a large model takes ten seconds each."""


def dry_run_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags to a launcher's command line."""
    command.add_argument(
        "--dry-run",
        type=as_count,
        metavar="RANKS",
        help="run one iteration of so many ranks in this process, on tensors without data and a GPU in name only",
    )
    command.add_argument(
        "--gpu",
        help=f"the GPU of a dry run: {', '.join(KNOWN)}, or NAME:CAPABILITY:GB (default: {_GPU})",
    )


def prepare(args: argparse.Namespace) -> None:
    """For a dry run, have this process the card in name.

    Raises:
        LaddError: for an unknown card, or one without a dry run, or if the process is one of several ranks.
    """
    if args.dry_run is None:
        if args.gpu is not None:
            raise LaddError(
                "--gpu is for a dry run alone: add --dry-run RANKS, or leave it out to train on what is here"
            )
        return
    if "RANK" in os.environ:
        raise LaddError("--dry-run makes its ranks itself: start it with python")
    pretend(_card(args))


def run_dry(config: Config, args: argparse.Namespace) -> None:
    """Check what can be checked without a GPU, run an iteration of the largest bucket, and print a summary.

    Raises:
        LaddError: for what would have failed.
    """
    import torch  # late: it must find the stand-in for CUDA

    from ladd_dist.log import log, warn
    from ladd_dist.models.folder import weight_files
    from ladd_dist.planning.dry_run.run import dry_run
    from ladd_dist.planning.dry_run.summary import offloaded, summary
    from ladd_dist.planning.networks import check_networks
    from ladd_dist.planning.plan import largest_bucket

    if config.device == "cpu":
        raise LaddError("device=cpu, but --dry-run is of a GPU: set device=auto")
    if not torch.cuda.is_available():
        raise LaddError("--dry-run needs a PyTorch for CUDA, though no GPU: install torch from PyPI")
    try:
        weight_files(config.teacher.path, "transformer")
    except LaddError as error:
        warn(f"{error}; its config alone is held against the rest")
    else:
        check_networks(config)
        log("teacher, student and buckets fit one another")
    if config.engine == "zero3" and config.zero3.offload != "none":
        print(offloaded(config, args.dry_run))
        return
    largest = largest_bucket(config).name
    seen = dry_run(config, args.dry_run, [largest], _MICRO_BATCHES)
    print(summary(config, seen, _card(args), largest, args.dry_run))


def _card(args: argparse.Namespace) -> FakeCard:
    return fake_card(_GPU if args.gpu is None else args.gpu)
