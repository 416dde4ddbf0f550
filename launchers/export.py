"""Turn a checkpoint into a diffusers folder or a single file."""

from pathlib import Path

import torch

from ladd_dist.checkpoints.export import export, export_place, export_single
from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import open_checkpoint
from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_path
from ladd_dist.data.prompts import read_prompts
from ladd_dist.log import log

_DESCRIPTION = """\
Write the student as a diffusers folder like the teacher's; its README.md shows how to draw with it. Or write its
transformer alone as one file with the names of SD3's first publication, model.diffusion_model.*.

  python launchers/export.py --config configs/tiny_cpu.yaml --out runs/demo/export
  python launchers/export.py --config configs/tiny_cpu.yaml --format single --dtype bf16
"""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(launch: Launch) -> None:
    """Write the folder or the file."""
    args, config = launch.args, launch.config
    single = args.format == "single"
    out = export_place(
        config, args.out or (Path(config.run_dir, "export-single") if single else None), args.overwrite
    )
    example = read_prompts(config.evaluation.prompts, config.synthesis.buckets)[0]
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    if not launch.world.is_main:
        return
    how = (args.weights, _DTYPES[args.dtype])
    if single:
        log(_drawn(checkpoint, export_single(config, checkpoint, out, *how, overwrite=args.overwrite)))
    else:
        export(config, checkpoint, out, *how, example, overwrite=args.overwrite)
        log(f"exported {checkpoint.path.name} to {out}")


def _drawn(checkpoint: Checkpoint, file: Path) -> str:
    """What no single file can say of itself."""
    times = ", ".join(f"{time:g}" for time in checkpoint.config.method.times())
    way = "with fresh noise between them, without guidance and without a shift of times"
    return f"exported {checkpoint.path.name} to {file}: draw with it at times {times}, {way}"


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    command.add_argument(
        "--format",
        choices=["diffusers", "single"],
        default="diffusers",
        help="a folder, or FOLDER/FOLDER.safetensors",
    )
    command.add_argument(
        "--out", type=as_path, metavar="FOLDER", help="where to (default: RUN_DIR/export, of a file export-single)"
    )
    command.add_argument("--dtype", choices=list(_DTYPES), default="fp32", help="of the saved weights")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export, and nothing else")
    run(command, main)
