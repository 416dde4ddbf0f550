"""A teacher's folder of another size, with random weights: for measurements, which need no teacher that can draw.

python -m ladd_dist.measuring.random_teacher --blocks 24 --width 384 runs/peers/teacher
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from ladd_dist.config.arguments import as_count, as_path

_FROM = Path("ladd_dist/digits/teacher")
_HEAD = 64


def random_teacher(blocks: int, width: int, folder: Path) -> None:
    """The digits' folder with a transformer of so many blocks of ``width`` channels, in heads of 64."""
    shutil.copytree(_FROM, folder, ignore=shutil.ignore_patterns("transformer"))
    sizes = {"num_layers": blocks, "num_attention_heads": width // _HEAD, "attention_head_dim": _HEAD}
    torch.manual_seed(0)
    config = SD3Transformer2DModel.load_config(_FROM, subfolder="transformer") | sizes
    config["caption_projection_dim"] = width
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")


def main() -> None:
    """Write the folder."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--blocks", type=as_count, required=True)
    command.add_argument("--width", type=as_count, required=True, help=f"a multiple of {_HEAD}")
    command.add_argument("folder", type=as_path, help="which must not be there yet")
    args = command.parse_args()
    if args.width % _HEAD:
        command.error(f"--width must be a multiple of {_HEAD}, not {args.width}")
    if args.folder.exists():
        command.error(f"{args.folder} is there already: choose another folder, or use it")
    random_teacher(args.blocks, args.width, args.folder)


if __name__ == "__main__":
    main()
