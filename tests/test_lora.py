"""A student of adapters on a frozen base that is also teacher and backbone of the discriminator."""

from pathlib import Path

import pytest
import torch
from conftest import ALONE, tiny_config
from ranks import ENGINES, ranks
from torch import Tensor

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import trainable
from ladd_dist.errors import LaddError
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.methods.networks import meta_student
from ladd_dist.methods.registry import build_method
from ladd_dist.training.trainer import Trainer

LORA = ["student.lora={rank: 3, alpha: 6}", "student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]
FP32 = 1e-5
"""As in test_parity."""


def lora_config(run_dir: Path, data: Path, teacher: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, data, f"teacher.path={teacher}", *LORA, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path, random_dataset: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("lora")
    Trainer(lora_config(run_dir, random_dataset, random_teacher), ALONE).run()
    return run_dir


def checkpoint_of(run_dir: Path) -> Checkpoint:
    found = open_newest(run_dir, ALONE)
    assert found is not None
    return found


def test_a_checkpoint_holds_adapters_alone(run: Path) -> None:
    names = set(checkpoint_of(run).network("student"))
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)


def test_one_base_trains_as_a_teacher_of_its_own_does(
    run: Path, random_teacher: Path, random_dataset: Path, tmp_path: Path
) -> None:
    Trainer(lora_config(tmp_path, random_dataset, random_teacher, f"student.path={random_teacher}"), ALONE).run()
    assert compare_runs(run, tmp_path, steps=6, tolerance=0).accepted


def _train(world: World, config: Config) -> None:
    Trainer(config, world).run()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("order", ["shared", "two_pass"])
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_ranks_train_as_one_process_does(
    run: Path, random_teacher: Path, random_dataset: Path, tmp_path: Path, engine: str, order: str, recompute: bool
) -> None:
    settings = [
        "train.micro_batch=4" if order == "shared" else "train.micro_batch=2",
        f"method.fake_pass={order}",
        f"student.activation_checkpointing={recompute}",
    ]
    ranks(2)(_train, lora_config(tmp_path, random_dataset, random_teacher, *ENGINES[engine], *settings))
    found = compare_runs(run, tmp_path, steps=6, tolerance=FP32)
    assert found.accepted, found
