"""Turn a checkpoint into a diffusers folder."""

import torch

from ladd_dist.checkpoints.export import export, export_place
from ladd_dist.checkpoints.student import open_checkpoint
from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_path
from ladd_dist.data.prompts import read_prompts
from ladd_dist.log import log

_DESCRIPTION = """\
Write the student as a diffusers folder like the teacher's; its README.md shows how to draw with it.

  python launchers/export.py --config configs/tiny_cpu.yaml --out runs/demo/export
"""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(launch: Launch) -> None:
    """Write the folder."""
    args, config = launch.args, launch.config
    out = export_place(config, args.out, args.overwrite)
    example = read_prompts(config.evaluation.prompts, config.synthesis.buckets)[0]
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    if launch.world.is_main:
        export(config, checkpoint, out, args.weights, _DTYPES[args.dtype], example, overwrite=args.overwrite)
        log(f"exported {checkpoint.path.name} to {out}")


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    command.add_argument("--out", type=as_path, metavar="FOLDER", help="where to (default: RUN_DIR/export)")
    command.add_argument("--dtype", choices=list(_DTYPES), default="fp32", help="of the saved weights")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export, and nothing else")
    run(command, main)
