"""Averages in host memory: the same as beside the weights, bit for bit, whatever happens to the run."""

from pathlib import Path

import pytest
import torch
from conftest import ALONE, tiny_config
from ranks import ranks
from recorded import rows_of, tensors_of

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.training.trainer import Trainer

ITERATIONS = 6


def run_to(world: World, config: Config, until: int) -> None:
    """Train on from the newest checkpoint, and leave after so many iterations."""
    trainer = Trainer(config, world)
    for done in trainer.iterations():
        if done == until:
            break
    trainer.writer.wait()


@pytest.mark.parametrize("engine", ["local", "fsdp2"])
def test_averages_in_host_memory_are_the_same_through_preview_and_resume(
    tmp_path: Path, dataset: Path, engine: str
) -> None:
    settings = [
        f"engine={engine}",
        "train.micro_batch=null",
        f"train.iterations={ITERATIONS}",
        "train.preview_every=3",
    ]
    same, host = (
        tiny_config(tmp_path / place, dataset, *settings, f"train.ema_device={place}") for place in ("same", "cpu")
    )
    for config, until in ((same, ITERATIONS), (host, 4), (host, ITERATIONS)):
        if engine == "local":
            run_to(ALONE, config, until)
        else:
            ranks(2)(run_to, config, until)
    ours, theirs = tensors_of(tmp_path / "cpu"), tensors_of(tmp_path / "same")
    assert ours.keys() == theirs.keys() and any(key.startswith("ema/") for key in ours)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert rows_of(tmp_path / "cpu") == rows_of(tmp_path / "same")
    for name in ("00000003/32x32.png", "00000006/64x32.png"):
        drawn, expected = (tmp_path / place / "previews" / name for place in ("cpu", "same"))
        assert drawn.read_bytes() == expected.read_bytes()
