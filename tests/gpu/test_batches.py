"""Batches on their way to the GPU at hand: through page-locked memory, unchanged."""

import pytest
import torch
from torch.utils.data import DataLoader

from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning


def micro_batches(numbers: list[int]) -> list[Batch]:
    """Module level: loader processes import it."""
    values = torch.tensor(numbers, dtype=torch.float32)
    latents, context = values.view(-1, 1, 1, 1).repeat(1, 4, 8, 8), values.view(-1, 1, 1).repeat(1, 7, 3)
    return [Batch(latents, Conditioning(context, context[:, 0].clone()), numbers, "32x32")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_pins_a_batch_and_it_arrives_whole(workers: int) -> None:
    loader = DataLoader(range(64), batch_size=8, num_workers=workers, collate_fn=micro_batches, pin_memory=True)  # type: ignore[arg-type]
    for (batch,) in loader:
        moved = batch.to(torch.device("cuda"))
        for there, here in zip((moved.latents, *moved.cond), (batch.latents, *batch.cond), strict=True):
            assert here.is_pinned() and there.is_cuda and torch.equal(there.cpu(), here)
        assert moved.ids == batch.ids and moved.bucket == batch.bucket
