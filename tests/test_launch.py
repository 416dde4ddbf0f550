"""One trainer, three launches: python, torchrun with FSDP2 and deepspeed with ZeRO-3, by their real commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALONE, TINY, tiny_overrides
from documented import documented, hostfile
from launch import environment
from PIL import Image

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.measuring.compared import free_port
from ladd_dist.training.tracking import read_metrics

BIN = Path(sys.executable).parent
STARTERS = {
    "local": [sys.executable],
    "fsdp2": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"],
    "zero3": [str(BIN / "deepspeed"), "--num_accelerators", "2"],
}
# Adam divides each gradient by its own size: where a true gradient is zero, rounding alone would decide the
# sign of a full step. A larger epsilon makes parameters comparable to rounding; gradients are near 1e-3.
EXACT = ["student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]


Train = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def train(random_teacher: Path, random_dataset: Path) -> Train:
    """Five fp32 iterations of an engine at a global batch of 8, in a run folder; the last checkpoint."""

    def run(engine: str, run_dir: Path, *overrides: str, starters: list[list[str]] | None = None) -> Checkpoint:
        # Each rank's share of the batch, as configs/tiny_cpu.yaml has it.
        settings = [f"teacher.path={random_teacher}", "train.iterations=5", "train.micro_batch=null", *EXACT]
        start(engine, [*tiny_overrides(run_dir, random_dataset), f"engine={engine}", *settings, *overrides], starters)
        saved = open_newest(run_dir, ALONE)
        assert saved is not None
        return saved

    return run


def start(engine: str, settings: list[str], starters: list[list[str]] | None) -> None:
    """Train to the end, by the engine's own starter or by several at once."""
    port = ["--master_port", str(free_port())] if engine == "zero3" else []
    # deepspeed's launcher takes its environment from the caller's PATH and needs no compiler's leftovers.
    env = environment({"DS_ACCELERATOR": "cpu", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"})
    started = [
        subprocess.Popen(
            [*starter, *port, "launchers/train.py", "--config", TINY, *settings],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for starter in starters or [STARTERS[engine]]
    ]  # fmt: skip
    try:
        for process in started:
            said = process.communicate(timeout=900)[0]
            assert process.returncode == 0, said
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def by_hostfile(folder: Path) -> list[list[str]]:
    """The guide's commands for two nodes, of which this machine plays both with a rank on each."""
    names = [line.split()[0] for line in hostfile()]
    file = folder / "hostfile"
    file.write_text("".join(f"127.0.0.{number} slots=1\n" for number, _ in enumerate(names, 1)))
    starters = []
    for number, _ in enumerate(names):
        words = documented("docs/guides.md", "deepspeed", f"--node_rank={number}").words
        starter = words[1 : words.index("launchers/train.py")]
        places = [f"--hostfile={file}", "--master_addr=127.0.0.1"]
        starters.append([str(BIN / "deepspeed"), *starter, *places])
    return starters


@pytest.fixture(scope="module")
def oracle(tmp_path_factory, train):
    """The local engine's run."""
    return train("local", tmp_path_factory.mktemp("local"))


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    difference = sum((a[k] - b[k]).double().square().sum() for k in a)
    return float((difference / sum(b[k].double().square().sum() for k in b)).sqrt())


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_sharded_engines_make_the_local_engines_parameters(tmp_path, train, oracle, engine):
    """By the real launchers; `test_parity` has every placement, order and precision."""
    run = train(engine, tmp_path)
    for network in ("student", "ema", "heads"):
        assert relative(run.network(network), oracle.network(network)) < 1e-5
    losses = [(row["d_loss"], row["g_loss"]) for row in read_metrics(tmp_path)]
    expected = [(row["d_loss"], row["g_loss"]) for row in read_metrics(oracle.path.parent.parent)]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resume(train: Train, oracle: Checkpoint) -> Train:
    """Copy the local run's folder and go on in it to 7 iterations, drawing previews with the averaged weights."""

    def run(engine: str, run_dir: Path, starters: list[list[str]] | None = None) -> Checkpoint:
        shutil.copytree(oracle.path.parent.parent, run_dir)
        return train(engine, run_dir, "train.iterations=7", "train.preview_every=7", starters=starters)

    return run


@pytest.fixture(scope="module")
def continued(tmp_path_factory, resume):
    """The local engine's run, gone on with."""
    return resume("local", tmp_path_factory.mktemp("continued") / "run")


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_local_checkpoint_goes_on_under_a_sharded_engine(tmp_path, resume, continued, engine):
    starters = by_hostfile(tmp_path) if engine == "zero3" else None
    run = resume(engine, tmp_path / "run", starters)
    assert (run.state.iteration, run.state.engine, run.state.world_size) == (7, engine, 2)
    for network in ("student", "ema", "heads"):
        assert relative(run.network(network), continued.network(network)) < 1e-5
    ours, theirs = (
        np.asarray(Image.open(c.path.parent.parent / "previews/00000007/32x64.png")) for c in (run, continued)
    )
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_five_iterations_move_the_student_far_beyond_the_tolerance(oracle, random_teacher):
    from ladd_dist.models.sd3.transformer import Sd3Backbone, load_transformer

    start = Sd3Backbone(load_transformer(random_teacher, torch.float32))
    before = {n: p.data for n, p in start.named_parameters()}
    assert relative(oracle.network("student"), before) > 1e-3


def test_wandb_offline_mirrors_the_record(tmp_path, dataset):
    env = {"WANDB_MODE": "offline"}
    settings = [*tiny_overrides(tmp_path, dataset), "train.iterations=2", "tracking.wandb=offline"]
    command = [sys.executable, "launchers/train.py", "--config", TINY, *settings]
    done = subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"samples_per_second" in content and b"real_logit/head_00" in content
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2]
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "d_loss",
        "g_loss",
        "real_logit",
        "fake_logit",
        "student_grad_norm",
        "samples_per_second",
    } <= row.keys()
    assert len(row["real_logit"]) == 4
