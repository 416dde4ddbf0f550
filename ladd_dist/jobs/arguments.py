"""What a job's launcher is told beside the configuration."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ladd_dist.config.arguments import as_count, as_path, as_text
from ladd_dist.errors import LaddError
from ladd_dist.jobs.cluster import JobName

PICTURES = 4
"""So many are drawn of each prompt, if nothing else is said."""
PAIRS = {"table": ("pairs",), "rank": ("scorer", "pictures")}
"""Flags of each kind of pairs, of which the first is needed."""
FLAGS: Mapping[JobName, list[str]] = {"export": ["--overwrite"]}
"""With which a launcher may be started again; the others may be as they are."""
_TOLD: tuple[JobName, ...] = ("encode", "pairs")


def encode_flags(command: argparse.ArgumentParser) -> None:
    """Of launchers/encode.py."""
    command.add_argument("--pictures", type=as_path, required=True, metavar="FILE", help="a .jsonl or .csv")


def pairs_flags(command: argparse.ArgumentParser) -> None:
    """Of launchers/pairs.py, beside the kind."""
    command.add_argument("--pairs", type=as_path, metavar="FILE", help="of table: a .jsonl or .csv")
    command.add_argument(
        "--scorer",
        type=as_text,
        metavar="NAME",
        help="of rank: stroke (for the digits), clip:FOLDER or MODULE:FUNCTION",
    )
    command.add_argument(
        "--pictures", type=as_count, metavar="K", help=f"of rank: to draw of each prompt (default: {PICTURES})"
    )


def check_pairs(args: argparse.Namespace) -> None:
    """Check that the flags of a kind of pairs are those that it has and needs.

    Raises:
        LaddError: naming the flag.
    """
    for kind, flags in PAIRS.items():
        if kind != args.kind and (given := [flag for flag in flags if getattr(args, flag) is not None]):
            raise LaddError(f"--{given[0]} is for '{kind}': leave it out of '{args.kind}'")
    if getattr(args, needed := PAIRS[args.kind][0]) is None:
        raise LaddError(f"'{args.kind}' needs --{needed}: see --help")


def as_words(argument: str) -> tuple[str, ...]:
    """A command line in one argument, quoted as for a shell."""
    try:
        return tuple(shlex.split(as_text(argument)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is no command line ({str(error).lower()})") from None


def arguments_flag(command: argparse.ArgumentParser) -> None:
    """The flag by which whoever starts a job hands words on to its launcher."""
    command.add_argument(
        "--arguments",
        type=as_words,
        default=(),
        metavar="WORDS",
        help="what the launcher of encode or pairs is told, in quotes: 'rank --scorer clip:models/clip'",
    )


class _Words(argparse.ArgumentParser):
    """Whose errors are this package's."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise LaddError(f"--arguments of {self.prog}: {message}: see launchers/{self.prog}.py --help")


def check_words(job: JobName, words: Sequence[str]) -> None:
    """Check that a job's launcher can be told so.

    Raises:
        LaddError: naming what is wrong or missing.
    """
    if job not in _TOLD:
        if words:
            raise LaddError(f"--arguments are for {' and '.join(_TOLD)}: leave them out of {job}")
        return
    launcher = _Words(prog=job, add_help=False, allow_abbrev=False)
    if job == "encode":
        encode_flags(launcher)
        launcher.parse_args(words)
        return
    launcher.add_argument("kind", choices=list(PAIRS))
    pairs_flags(launcher)
    check_pairs(launcher.parse_args(words))
