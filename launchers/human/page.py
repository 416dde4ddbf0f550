"""Make a blind page that asks people which of two models' pictures are better."""

import argparse

import torch

from ladd_dist.config.arguments import as_path, as_text, run_command
from ladd_dist.distributed.world import World
from ladd_dist.files.disk import real_path
from ladd_dist.human.page import check_place, shown, write_page
from ladd_dist.human.sets import how_matched, read_sets
from ladd_dist.human.trials import KEY, QUESTIONS, pairs_of, plan, unmatched
from ladd_dist.log import progress

_DESCRIPTION = """\
Write a page that asks people, blind, which pictures are better, and the key that says whose they were. The page is
one file, needs no server and sends nothing: give it to raters, keep the key, and read their answers with score.py.

  python launchers/human/page.py --set student=runs/a/samples --set teacher=runs/b/samples --out runs/human
  python launchers/human/page.py --set "student=runs/demo/samples/*[0-9].png" \\
      --set "teacher=runs/demo/samples/*-teacher.png" --against teacher --out runs/human

Pictures belong together that were drawn with the same prompt, size and seed (launchers/sample.py notes them in its
files), or that have the same file name if any file does not say them.
"""


def main(args: argparse.Namespace) -> None:
    """Match, say what has no counterpart, write."""
    folder = real_path(args.out)
    check_place(folder, args.overwrite)
    sets = read_sets(args.set)
    pairs = pairs_of(sets, args.against)
    key = plan(sets, pairs)
    print(how_matched(sets))
    for model, rival in pairs:
        for mine, other, alone in zip((model, rival), (rival, model), unmatched(model, rival), strict=True):
            if alone:
                print(f"{alone} of {len(mine.pictures)} pictures of {mine.name} have no counterpart in {other.name}")
    asked = [sum(trial.question == question for trial in key.trials) for question in QUESTIONS]
    if asked[1] < asked[0]:
        print(f"alignment is not asked of {asked[0] - asked[1]} pairs: no file of theirs says its prompt")
    with progress("page", len(shown(key, sets)), unit="img", world=World(0, 1, 0, torch.device("cpu"))) as bar:
        page = write_page(key, sets, folder, args.overwrite, bar.update)
    print(f"{asked[0]} pairs to judge by quality and {asked[1]} by alignment")
    print(f"give {page} to raters, keep {folder / KEY}")


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--set", type=as_text, action="append", metavar="NAME=FOLDER", required=True,
        help="a model and its pictures, a folder or a pattern of files; two or more",
    )  # fmt: skip
    command.add_argument(
        "--against", type=as_text, metavar="NAME", help="compare all others with this one (default: every two)"
    )
    command.add_argument("--out", type=as_path, metavar="FOLDER", required=True, help="for the page and its key")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier page there, and its key")
    return command


if __name__ == "__main__":
    run_command(command_line(), main)
