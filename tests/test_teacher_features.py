"""The teacher's features: low noise sees texture, middle noise layout."""

from pathlib import Path

import torch
from conftest import ALONE, tiny_config
from latents import rows_of
from torch import Tensor

from ladd_dist.data.mds import collate
from ladd_dist.drawing.pipeline import Encoded, load_backbone
from ladd_dist.evaluation.teacher_features import TeacherFeatures, by_level, comparable


def test_texture_moves_the_fine_level_more_and_layout_the_coarse_one(tmp_path: Path, dataset: Path) -> None:
    config = tiny_config(tmp_path, dataset)
    rows = [row for row in rows_of(dataset) if row["bucket"] == "32x32"]
    batch = collate(rows)
    look = TeacherFeatures(config, load_backbone(config.teacher.path, torch.float32, ALONE.device))
    encoded = Encoded(batch.cond, [0] * len(rows), (4, 8, 8))

    def levels(latents: Tensor) -> tuple[Tensor, ...]:
        return by_level(look(latents, encoded, batch.ids))

    def moved(latents: Tensor) -> float:
        """How far the fine level is moved, for each unit of the coarse one."""
        fine, coarse = (
            (comparable(after, before) - comparable(before, before)).norm(dim=1).mean()
            for after, before in zip(levels(latents), levels(batch.latents), strict=True)
        )
        return float(fine / coarse)

    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    texture, layout = moved(batch.latents + 0.2 * noise), moved(batch.latents.roll(4, 2))
    assert texture > 1.3 * layout
