"""Preference pairs: their schema, from a table or from the teacher's own ranked samples to batches."""

from pathlib import Path

import pytest
import torch
from conftest import ALONE, BUCKETS, TEACHER, tiny_config
from latents import rows_of

from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.check import check_dataset
from ladd_dist.data.mds import REJECTED, collate, from_bits
from ladd_dist.digits.scans import LAYOUTS, load_part, render
from ladd_dist.errors import LaddError
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.registry import family_of

# Schema


@pytest.mark.parametrize("bucket", BUCKETS)
def test_what_is_encoded_is_decoded_to_the_same_picture(bucket: str) -> None:
    rows, columns = LAYOUTS[bucket]
    pictures = render(load_part("judge").images[: 8 * rows * columns].view(8, rows * columns, 8, 8), bucket)
    family = family_of(TEACHER)
    latents = family.encoder(TEACHER, ALONE.device).encode(pictures)
    assert latents.dtype == torch.float32
    assert latents.shape == (8, *LatentSpace.of(TEACHER).shape(Bucket.parse(bucket)))
    assert 0.8 < latents.std() < 1.2 and latents.mean().abs() < 0.2, "the backbone takes latents of deviation 1"
    again = family.decoder(TEACHER, ALONE.device).decode(latents)
    assert (again - pictures).square().mean() < 0.003 < 0.03 < pictures.var()


def test_a_batch_of_pairs_has_the_rejected_latents_wherever_it_goes(dataset: Path) -> None:
    rows = [row for row in rows_of(dataset) if row["bucket"] == "32x64"][:3]
    other = rows[::-1]
    assert collate(rows).rejected is None
    batch = collate([row | {REJECTED: twin["latent"]} for row, twin in zip(rows, other, strict=True)])
    assert batch.rejected is not None
    assert torch.equal(batch.rejected, torch.stack([from_bits(row["latent"].copy()) for row in other]))
    moved = batch.to(torch.device("meta"))
    assert moved.rejected is not None and moved.rejected.is_meta and moved.latents.is_meta


def test_a_method_that_needs_pairs_is_told_so_before_anything_is_loaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ladd, "FIELDS", (*Ladd.FIELDS, REJECTED))
    config = tiny_config(tmp_path, dataset)
    with pytest.raises(LaddError) as refused:
        check_dataset(config, LatentSpace.of(TEACHER), fingerprint(TEACHER), ALONE)
    line = str(refused.value)
    assert line.startswith(f"method.name=ladd needs preference pairs, but data.path={dataset} holds latents")
    assert line.endswith("make pairs with launchers/pairs.py, and set data.path to them")
