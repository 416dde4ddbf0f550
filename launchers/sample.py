"""Draw pictures with a distilled student."""

import argparse
from pathlib import Path

from torch import Tensor

from ladd_dist.arguments import as_path, as_seed, as_text
from ladd_dist.cli import Launch, parser, run
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import first_of_each_bucket, read_requests
from ladd_dist.draws import image_seed
from ladd_dist.engines.build import compute_dtype
from ladd_dist.errors import LaddError
from ladd_dist.log import log, progress
from ladd_dist.networks import check_networks
from ladd_dist.painter import Painter
from ladd_dist.pictures import save_png, sheet
from ladd_dist.student import load_student, open_checkpoint
from ladd_dist.values import MAX_SEED

_DESCRIPTION = """\
Draw with the student: the given prompts, or some held-out ones of every aspect ratio. Writes PNGs and a sheet.

  python launchers/sample.py --config configs/tiny_cpu.yaml --prompt "a seven next to a two" --bucket 32x64
  python launchers/sample.py --config configs/tiny_cpu.yaml sampling.steps=1
"""
_PER_BUCKET = 8


def main(launch: Launch) -> None:
    """Draw and write."""
    args, config, device = launch.args, launch.config, launch.world.device
    _check_seeds(args)
    check_networks(config)
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    student = load_student(config, checkpoint, args.weights, compute_dtype(config)).to(device)
    painter = Painter(config, device, student)
    out = Path(args.out or Path(config.run_dir) / "samples")
    groups = _wanted(launch)
    bar = progress("sample", sum(len(rows) for _, rows in groups), unit="img", world=launch.world)
    sheets = []
    for bucket, rows in groups:
        shape = painter.space.shape(bucket)
        pictures: list[Tensor] = []
        for start in range(0, len(rows), config.sampling.batch):
            part = rows[start : start + config.sampling.batch]
            cond = painter.encode([prompt for prompt, _ in part])
            latents = painter.student(cond, [seed for _, seed in part], shape, config.sampling.steps)
            pictures.extend(painter.decode(latents))
            bar.update(len(part))
        for number, picture in enumerate(pictures):
            save_png(picture, out / f"{bucket.name}-{number:02d}.png")
        sheets.append(pictures)
    bar.close()
    path = save_png(sheet(sheets), out / "sheet.png")
    times = ", ".join(f"{time:g}" for time in config.method.times(config.sampling.steps))
    log(f"times {times}, {checkpoint.path.name}: {path}")


def _check_seeds(args: argparse.Namespace) -> None:
    prompts = len(args.prompt or ())
    if args.seed + prompts - 1 > MAX_SEED:
        raise LaddError(f"--seed {args.seed} leaves no seeds for {prompts} prompts: {MAX_SEED} is the last one")


def _wanted(launch: Launch) -> list[tuple[Bucket, list[tuple[str, int]]]]:
    """Prompts and seeds by bucket."""
    args, config = launch.args, launch.config
    if not args.prompt:
        requests = read_requests(config.evaluation.prompts, config.synthesis.buckets)
        groups = first_of_each_bucket(requests, _PER_BUCKET)
        return [(g[0].bucket, [(r.prompt, image_seed(args.seed, "sample", r.id)) for r in g]) for g in groups]
    bucket = args.bucket or config.synthesis.buckets[0]
    if bucket not in config.synthesis.buckets:
        raise LaddError(f"--bucket {bucket} is not one of synthesis.buckets: {', '.join(config.synthesis.buckets)}")
    return [(Bucket.parse(bucket), [(prompt, args.seed + i) for i, prompt in enumerate(args.prompt)])]


def command_line() -> argparse.ArgumentParser:
    """The launcher's flags."""
    command = parser(_DESCRIPTION)
    command.add_argument("--prompt", type=as_text, action="append", help="what to draw; may be given several times")
    command.add_argument("--bucket", metavar="HEIGHTxWIDTH", help="picture size (default: the first bucket)")
    command.add_argument("--seed", type=as_seed, default=0, help="of the first prompt; the next ones count on")
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    command.add_argument("--out", type=as_path, metavar="FOLDER", help="where to (default: RUN_DIR/samples)")
    return command


if __name__ == "__main__":
    run(command_line(), main)
