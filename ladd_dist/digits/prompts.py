"""The grammar of the digit prompts, and its split into distillation and evaluation prompts.

``python -m ladd_dist.digits.prompts`` writes the two prompt files again.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ladd_dist.digits import EVAL_PROMPTS, TRAIN_PROMPTS

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# "{a}" is a digit with its article, "{n}" without. No template uses "one" as an article: "one three"
# would name two digits.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "32x32": ("{a}", "the digit {n}", "a single {n}", "number {n}", "a handwritten {n}"),
    "32x64": ("{a} next to {b}", "{a} beside {b}", "{a} left of {b}"),
    "64x32": ("{a} above {b}", "{a} over {b}", "{a} on top of {b}"),
}
"""Bucket -> templates. Pairs read left to right or top to bottom."""

EVERY = 5
SINGLE_REPEATS = 6
"""Singles are few: repeating them makes the buckets equally frequent (40 x 6 = 240, 10 x 6 = 60)."""

SHUFFLE_SEED = 7


class Prompt(NamedTuple):
    """A sentence, its bucket, the digits it names, and whether it is held out from distillation."""

    text: str
    bucket: str
    digits: tuple[int, ...]
    held_out: bool


def digits_in(prompt: str) -> list[int]:
    """The digits that ``prompt`` names as words, in order: left to right, or top to bottom."""
    return [WORDS.index(word) for word in re.findall(r"[a-z]+", prompt.lower()) if word in WORDS]


def _with_article(digit: int) -> str:
    return ("an " if digit == 8 else "a ") + WORDS[digit]


def _singles() -> Iterator[Prompt]:
    for digit in range(10):
        for index, template in enumerate(TEMPLATES["32x32"]):
            text = template.format(a=_with_article(digit), n=WORDS[digit])
            yield Prompt(text, "32x32", (digit,), (digit + index) % EVERY == 0)


def _pairs(bucket: str) -> Iterator[Prompt]:
    for a in range(10):
        for b in range(10):
            # A pair is held out in all its templates; in this lattice every digit occurs equally often.
            held_out = (a + 2 * b) % EVERY == 0
            for template in TEMPLATES[bucket]:
                yield Prompt(template.format(a=_with_article(a), b=_with_article(b)), bucket, (a, b), held_out)


def all_prompts() -> list[Prompt]:
    """Every sentence of the grammar, once: 50 singles and 300 pairs per orientation."""
    return [*_singles(), *_pairs("32x64"), *_pairs("64x32")]


def _lines(held_out: bool) -> list[str]:
    lines = []
    for prompt in all_prompts():
        if prompt.held_out == held_out:
            line = json.dumps({"prompt": prompt.text, "bucket": prompt.bucket})
            lines += [line] * (SINGLE_REPEATS if prompt.bucket == "32x32" else 1)
    random.Random(SHUFFLE_SEED).shuffle(lines)  # noqa: S311 -- a shuffle, not a secret
    return lines


def write_prompts(train: Path = TRAIN_PROMPTS, evaluation: Path = EVAL_PROMPTS) -> None:
    """Write both prompt files, 720 and 180 lines of ``{"prompt", "bucket"}``, buckets equally frequent."""
    for path, held_out in ((train, False), (evaluation, True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(_lines(held_out)) + "\n", encoding="utf-8")


def main() -> None:
    """Write the prompt files beside this module."""
    argparse.ArgumentParser(prog="python -m ladd_dist.digits.prompts", description=__doc__).parse_args()
    write_prompts()
    print(f"wrote {TRAIN_PROMPTS} and {EVAL_PROMPTS}")


if __name__ == "__main__":
    main()
