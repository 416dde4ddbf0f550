"""Real scans with prompts, for ``launchers/encode.py``: ``python -m ladd_dist.measuring.scans_table FOLDER``.

The scans are the teacher's part, the prompts those that the demo's latents are drawn for.
"""

import argparse
import json
import random
from pathlib import Path

from ladd_dist.config.arguments import as_path, run_command
from ladd_dist.digits import TRAIN_PROMPTS
from ladd_dist.digits.prompts import digits_in
from ladd_dist.digits.scans import load_part, render
from ladd_dist.drawing.pictures import save_png

IMAGES_PER_PROMPT = 3
"""As ``synthesis.images_per_prompt`` of ``configs/tiny_cpu.yaml``."""


def write_table(folder: Path, images_per_prompt: int = IMAGES_PER_PROMPT) -> Path:
    """Write pictures of randomly chosen scans, the same ones every time, and their table.

    Returns:
        The table, ``pictures.jsonl``.
    """
    scans, chance = load_part("teacher"), random.Random(0)  # noqa: S311 - no secret
    rows: list[dict[str, str]] = []
    of_digit = [(scans.labels == digit).nonzero().flatten().tolist() for digit in range(10)]
    for line in TRAIN_PROMPTS.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for _ in range(images_per_prompt):
            chosen = [chance.choice(of_digit[digit]) for digit in digits_in(entry["prompt"])]
            name = f"{len(rows):05d}.png"
            save_png(render(scans.images[chosen][None], entry["bucket"])[0], folder / name)
            rows.append({"prompt": entry["prompt"], "picture": name})
    table = folder / "pictures.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def _command() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(description="Write real scans with prompts, a table and its pictures.")
    command.add_argument("folder", type=as_path, metavar="FOLDER")
    return command


if __name__ == "__main__":
    run_command(_command(), lambda args: print(write_table(args.folder)))
