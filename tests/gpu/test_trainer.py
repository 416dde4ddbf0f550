"""The trainer on the GPU at hand: the digits teacher's latents, and a few iterations of every engine and kernel."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 48


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A dataset that this GPU drew."""
    folder = tmp_path_factory.mktemp("gpu")
    prompts = (ROOT / "ladd_dist/digits/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    settings = [
        f"data.path={folder / 'latents'}", f"synthesis.prompts={folder / 'prompts.jsonl'}", "synthesis.steps=4",
        "synthesis.images_per_prompt=1",
    ]  # fmt: skip
    run([sys.executable, "launchers/synthesize.py"], [*settings, f"run_dir={folder / 'synthesis'}"])
    return settings


def run(start, settings):
    command = [*start, "--config", "configs/tiny_cpu.yaml", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        ["engine=local", "train.precision=fp32", "kernels.heads=torch"],
        ["engine=local", "train.precision=bf16", "kernels.heads=torch"],
        ["engine=local", "train.precision=bf16", "kernels.heads=triton", "kernels.attention=triton"],
        ["engine=fsdp2", "train.precision=bf16", "kernels.heads=triton"],
        ["engine=zero3", "train.precision=bf16", "kernels.heads=triton"],
    ],
    ids=" ".join,
)
def test_a_few_iterations(latents, tmp_path, settings):
    start = [sys.executable, "launchers/train.py"]
    if settings[0] != "engine=local":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", start[1]]
    few = ["train.iterations=4", "train.global_batch=8", "train.log_every=1", "train.checkpoint_every=4"]
    more = ["train.preview_every=4", "method.warmup_iterations=1", "data.workers=1", f"run_dir={tmp_path / 'run'}"]
    run(start, [*latents, *few, *more, *settings])
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert (tmp_path / "run/checkpoints").is_dir() and any((tmp_path / "run").rglob("*.png"))
