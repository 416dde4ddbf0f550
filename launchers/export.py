"""Turn a checkpoint into a diffusers folder, a single file or a file of adapters."""

from pathlib import Path
from typing import TYPE_CHECKING

from ladd_dist.cli import Launch, parser, run, student_flags
from ladd_dist.config.arguments import as_path
from ladd_dist.errors import LaddError
from ladd_dist.log import log

if TYPE_CHECKING:
    from ladd_dist.checkpoints.reader import Checkpoint

_DESCRIPTION = """\
Write the student as a diffusers folder like the teacher's; its README.md shows how to draw with it. Or write its
transformer alone as one file with the names of SD3's first publication, model.diffusion_model.*. Adapters are merged,
a run's own as well as those of --lora; or the run's own are written alone, for load_lora_weights and ComfyUI.

  python launchers/export.py --config configs/digits.yaml --out runs/demo/export
  python launchers/export.py --config configs/digits.yaml --format single --dtype bf16
  python launchers/export.py --config configs/digits.yaml --format lora student.lora.rank=16
"""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_FORMATS = {"diffusers": "export", "single": "export-single", "lora": "export-lora"}
"""And where in the run's folder they are written."""


def main(launch: Launch) -> None:
    """Write the folder or the file."""
    import torch  # late, with all that imports it: that takes seconds

    from ladd_dist.checkpoints.export import export, export_lora, export_place, export_single
    from ladd_dist.checkpoints.lora import open_loras
    from ladd_dist.checkpoints.student import open_checkpoint
    from ladd_dist.data.prompts import read_prompts
    from ladd_dist.report.scores import scores_of

    args, config, world = launch.args, launch.config, launch.world
    if args.format == "lora" and args.lora:
        raise LaddError(
            "--lora adds adapters to a student, but --format lora writes a run's own alone: leave one out"
        )
    out = export_place(config, args.out or Path(config.run_dir, _FORMATS[args.format]), args.overwrite)
    example = read_prompts(config.evaluation.prompts, config.synthesis.buckets)[0]
    checkpoint = open_checkpoint(config, world, args.checkpoint)
    loras = open_loras(args.lora, world, args.weights)
    if not world.is_main:
        return
    how = (args.weights, getattr(torch, _DTYPES[args.dtype]))
    if args.format == "single":
        log(_drawn(checkpoint, export_single(config, checkpoint, out, *how, loras, overwrite=args.overwrite)))
    elif args.format == "lora":
        file = export_lora(config, checkpoint, out, *how, overwrite=args.overwrite)
        log(f"exported the adapters of {checkpoint.path.name} to {file}")
    else:
        scores = scores_of(config, checkpoint, args.weights, loras)
        export(config, checkpoint, out, *how, example, loras, args.overwrite, scores)
        log(f"exported {checkpoint.path.name} to {out}")


def _drawn(checkpoint: "Checkpoint", file: Path) -> str:
    """What no single file can say of itself."""
    if checkpoint.config.method.draws_as_teacher:
        return f"exported {checkpoint.path.name} to {file}: draw with it as with the teacher"
    times = ", ".join(f"{time:g}" for time in checkpoint.config.method.times())
    way = "with fresh noise between them, without guidance and without a shift of times"
    return f"exported {checkpoint.path.name} to {file}: draw with it at times {times}, {way}"


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    student_flags(command)
    command.add_argument(
        "--format",
        choices=list(_FORMATS),
        default="diffusers",
        help="a folder, FOLDER/FOLDER.safetensors, or FOLDER/pytorch_lora_weights.safetensors",
    )
    command.add_argument(
        "--out", type=as_path, metavar="FOLDER",
        help="where to (default: RUN_DIR/export, or export-FORMAT of the others)",
    )  # fmt: skip
    command.add_argument("--dtype", choices=list(_DTYPES), default="fp32", help="of the saved weights")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export, and nothing else")
    run(command, main)
