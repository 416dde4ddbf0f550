"""What raters' answers to a blind page say: win rates and Elo with intervals, and the bar chart."""

import argparse

from ladd_dist.config.arguments import as_path, run_command
from ladd_dist.files.disk import real_path
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.human.answers import read_votes
from ladd_dist.human.chart import draw_win_rates
from ladd_dist.human.scores import score, table
from ladd_dist.human.trials import read_key

_DESCRIPTION = """\
Read the answers that raters saved with a page of page.py, and write scores.json and win_rates.png: how often each
model is preferred to another, by image quality and by prompt alignment, and Elo ratings, all with 95% intervals.

  python launchers/human/score.py --key runs/human/key.json --out runs/scores answers-*.json
"""
_KIND = "scores"


def main(args: argparse.Namespace) -> None:
    """Read, compute, write."""
    folder = real_path(args.out)
    check_replaceable(folder, _KIND)
    key = read_key(args.key)
    votes = read_votes(key, args.answers)
    scores = score(key, votes)
    with replacing(folder, _KIND) as new:
        (new / "scores.json").write_text(scores.model_dump_json(indent=1) + "\n", encoding="utf-8")
        draw_win_rates(scores.win_rates, scores.raters, new / "win_rates.png")
    if scores.contradictions:
        print(f"{scores.contradictions} answers left out: the same rater answered the same question differently")
    asked = len(key.trials) * scores.raters
    print(f"{scores.answers} answers of {asked}, {scores.raters} raters, {len(votes.files)} files\n")
    print("\n".join(table(scores)))
    print(f"\nwrote {folder}")


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--key", type=as_path, metavar="FILE", required=True, help="key.json, written with the page")
    command.add_argument("--out", type=as_path, metavar="FOLDER", required=True, help="for scores.json and the chart")
    command.add_argument("answers", type=as_path, nargs="+", metavar="ANSWERS", help="files that raters saved")
    return command


if __name__ == "__main__":
    run_command(command_line(), main)
