"""Turn a checkpoint into a diffusers folder."""

import torch

from ladd_dist.checkpoints.export import export, export_lora, export_place, lora_place
from ladd_dist.checkpoints.lora import open_loras
from ladd_dist.checkpoints.student import open_checkpoint
from ladd_dist.cli import Launch, parser, run, student_flags
from ladd_dist.config.arguments import as_path
from ladd_dist.data.prompts import read_prompts
from ladd_dist.errors import LaddError
from ladd_dist.log import log

_DESCRIPTION = """\
Write the student as a diffusers folder like the teacher's; its README.md shows how to draw with it. Adapters are
merged, a run's own ones as well as those of --lora. With --kind lora, write the run's own alone, as a file that
load_lora_weights and ComfyUI take.

  python launchers/export.py --config configs/tiny_cpu.yaml --out runs/demo/export
  python launchers/export.py --config configs/tiny_cpu.yaml --lora runs/dpo --out runs/demo/preferred
"""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(launch: Launch) -> None:
    """Write the folder."""
    args, config = launch.args, launch.config
    dtype = _DTYPES[args.dtype]
    if args.kind == "lora":
        return _adapters(launch, dtype)
    out = export_place(config, args.out, args.overwrite)
    example = read_prompts(config.evaluation.prompts, config.synthesis.buckets)[0]
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    loras = open_loras(args.lora, launch.world, args.weights)
    if launch.world.is_main:
        export(config, checkpoint, out, args.weights, dtype, example, loras, overwrite=args.overwrite)
        log(f"exported {checkpoint.path.name} to {out}")


def _adapters(launch: Launch, dtype: torch.dtype) -> None:
    args, config = launch.args, launch.config
    if args.lora:
        raise LaddError("--lora adds adapters to a student, but --kind lora writes the run's own alone: leave it out")
    out = lora_place(config, args.out, args.overwrite)
    checkpoint = open_checkpoint(config, launch.world, args.checkpoint)
    if launch.world.is_main:
        export_lora(config, checkpoint, out, args.weights, dtype, overwrite=args.overwrite)
        log(f"exported the adapters of {checkpoint.path.name} to {out}")


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    student_flags(command)
    command.add_argument("--kind", choices=["student", "lora"], default="student", help="what to write, see above")
    command.add_argument("--out", type=as_path, metavar="FOLDER", help="where to (default: RUN_DIR/export or lora)")
    command.add_argument("--dtype", choices=list(_DTYPES), default="fp32", help="of the saved weights")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export, and nothing else")
    run(command, main)
