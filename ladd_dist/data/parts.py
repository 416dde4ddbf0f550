"""How the parts of a dataset are named: each is whole or not there at all."""

from pathlib import Path


def part_folder(root: Path, bucket: str, number: int) -> Path:
    """Where a bucket's part is, there or not."""
    return root / bucket / f"part-{number:05d}"


def count_parts(root: Path) -> int:
    """How many parts are there, of all buckets."""
    return sum(path.is_dir() for path in root.glob("*/part-*"))
