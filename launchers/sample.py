"""Draw pictures with a distilled student."""

import argparse
from pathlib import Path

from torch import Tensor

from ladd_dist.checkpoints.student import load_student, open_checkpoint
from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_path, as_seed, as_text
from ladd_dist.config.values import MAX_SEED
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import first_of_each_bucket, read_prompts
from ladd_dist.diffusion.noise import image_seed
from ladd_dist.drawing.pictures import save_png, sheet
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.files.folders import check_replaceable, replacing
from ladd_dist.files.places import own_place
from ladd_dist.log import log, progress
from ladd_dist.planning.networks import check_networks

_DESCRIPTION = """\
Draw with the student: the given prompts, or some held-out ones of every aspect ratio. Writes PNGs and a sheet.

  python launchers/sample.py --config configs/tiny_cpu.yaml --prompt "a seven next to a two" --bucket 32x64
  python launchers/sample.py --config configs/tiny_cpu.yaml sampling.steps=1
"""
_PER_BUCKET = 8
_SHEET = "sheet.png"

Group = tuple[Bucket, list[tuple[str, int]]]
"""Prompts of one bucket with their seeds."""


def main(launch: Launch) -> None:
    """Draw and write."""
    args, config, device = launch.args, launch.config, launch.world.device
    _check_seeds(args)
    check_networks(config)
    out, groups = own_place(config, args.out, "samples"), _wanted(launch)
    check_replaceable(out, "samples")
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    student = load_student(config, checkpoint, args.weights, compute_dtype(config)).to(device)
    pipeline = Pipeline(config, device)
    bar = progress("sample", sum(len(rows) for _, rows in groups), unit="img", world=launch.world)
    sheets = []
    for bucket, rows in groups:
        pictures: list[Tensor] = []
        for start in range(0, len(rows), config.sampling.batch):
            part = rows[start : start + config.sampling.batch]
            encoded = pipeline.encode([prompt for prompt, _ in part], [seed for _, seed in part], bucket)
            latents = pipeline.student(student, encoded, config.sampling.steps)
            pictures.extend(pipeline.decode(latents).cpu())
            bar.update(len(part))
        sheets.append(pictures)
    bar.close()
    if launch.world.is_main:
        _write(out, groups, sheets)
        times = ", ".join(f"{time:g}" for time in config.method.times(config.sampling.steps))
        drawn = ", ".join(f"{len(rows)} of {bucket.name}" for bucket, rows in groups)
        log(f"times {times}, {checkpoint.path.name}, {drawn}: {out / _SHEET}")


def _check_seeds(args: argparse.Namespace) -> None:
    prompts = len(args.prompt or ())
    if args.seed + prompts - 1 > MAX_SEED:
        raise LaddError(f"--seed {args.seed} leaves no seeds for {prompts} prompts: {MAX_SEED} is the last one")


def _write(out: Path, groups: list[Group], sheets: list[list[Tensor]]) -> None:
    """All pictures at once, in the place of an earlier call's."""
    with replacing(out, "samples") as folder:
        for (bucket, _), pictures in zip(groups, sheets, strict=True):
            for number, picture in enumerate(pictures):
                save_png(picture, folder / f"{bucket.name}-{number:02d}.png")
        save_png(sheet(sheets), folder / _SHEET)


def _wanted(launch: Launch) -> list[Group]:
    """Prompts and seeds by bucket."""
    args, config = launch.args, launch.config
    if not args.prompt:
        if args.bucket:
            raise LaddError("--bucket is the size of a --prompt, and none is given: add one, or leave --bucket out")
        entries = read_prompts(config.evaluation.prompts, config.synthesis.buckets)
        groups = first_of_each_bucket(entries, _PER_BUCKET)
        return [(g[0].bucket, [(r.prompt, image_seed(args.seed, "sample", r.id)) for r in g]) for g in groups]
    wanted: dict[str, list[tuple[str, int]]] = {}
    for i, (prompt, bucket) in enumerate(zip(args.prompt, _buckets(launch), strict=True)):
        wanted.setdefault(bucket, []).append((prompt, args.seed + i))
    return [(Bucket.parse(bucket), rows) for bucket, rows in wanted.items()]


def _buckets(launch: Launch) -> list[str]:
    """The bucket of every given prompt."""
    known, count = launch.config.synthesis.buckets, len(launch.args.prompt)
    given = launch.args.bucket or known[:1]
    if unknown := [bucket for bucket in given if bucket not in known]:
        raise LaddError(f"--bucket {unknown[0]} is not one of synthesis.buckets: {', '.join(known)}")
    if len(given) not in (1, count):
        raise LaddError(f"{len(given)} --bucket for {count} --prompt: give one for each in order, or one for all")
    return given if len(given) == count else given * count


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION)
    command.add_argument("--prompt", type=as_text, action="append", help="what to draw; may be given several times")
    command.add_argument(
        "--bucket",
        action="append",
        metavar="HEIGHTxWIDTH",
        help="picture size: once for every --prompt, or one for each in order (default: the first bucket)",
    )
    command.add_argument("--seed", type=as_seed, default=0, help="of the first prompt; the next ones count on")
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    command.add_argument(
        "--out", type=as_path, metavar="FOLDER",
        help="where to; an earlier call's pictures are replaced (default: RUN_DIR/samples)",
    )  # fmt: skip
    return command


if __name__ == "__main__":
    run(command_line(), main)
