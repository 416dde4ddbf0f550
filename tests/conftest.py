"""Fixtures that several test files share.

Importing this file puts the tests and the processes that they start on the CPU, in one thread or LADD_TEST_THREADS.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = os.environ.get("LADD_TEST_THREADS", "1")
# What inductor compiled for one processor's vectors gives NaN where PyTorch is limited to another's.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = (
    f"{tempfile.gettempdir()}/ladd_dist_{os.getuid()}_{os.environ.get('ATEN_CPU_CAPABILITY', 'own')}"
)

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.utils import dynamic_modules_utils
from hypothesis import HealthCheck, settings
from ranks import close_ranks
from system import require

from ladd_dist import config as config_module
from ladd_dist.config import Config
from ladd_dist.digits import TRAIN_PROMPTS
from ladd_dist.distributed.world import World
from ladd_dist.drawing.synthesis import synthesize

THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(THREADS)

# As from a terminal: `nohup` ignores the one and a shell's background jobs the other, and children inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis fails an example that takes 200 ms and inputs that are slow to draw, as on a busy machine. What it draws
# is the same every time, as a gate must be: `make search` looks further, and what it finds becomes an `@example`.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", ANY_SPEED, derandomize=True)
settings.register_profile("search", ANY_SPEED, max_examples=1000, print_blob=True)
settings.load_profile("gate")

ROOT = Path(__file__).parent.parent
os.chdir(ROOT)  # configs name the teacher and the prompts relative to it

TINY = "configs/tiny_cpu.yaml"
TEACHER = "ladd_dist/digits/teacher"
BUCKETS = ["32x32", "32x64", "64x32"]
PER_BUCKET = 24
ALONE = World(0, 1, 0, torch.device("cpu"))

NEEDS_VECTORS = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="without vector instructions PyTorch 2.15's inductor writes C++ that g++ refuses",
)


def tiny_overrides(run_dir: Path, data: Path) -> list[str]:
    """What turns configs/tiny_cpu.yaml into a run of seconds; prompts lie beside the dataset."""
    return [
        f"run_dir={run_dir}",
        f"data.path={data}",
        "device=cpu",
        "discriminator.width=16",
        "discriminator.out_width=16",
        "discriminator.groups=4",
        "discriminator.cond_width=16",
        "method.warmup_iterations=2",
        "train.iterations=6",
        "train.global_batch=8",
        "train.micro_batch=8",
        "train.log_every=1",
        "train.checkpoint_every=2",
        "train.preview_every=0",
        "tracking.page_every=0",
        f"synthesis.prompts={data.parent / 'prompts.jsonl'}",
        "synthesis.images_per_prompt=3",
        "synthesis.steps=2",
        "synthesis.guidance=1.5",
        "synthesis.batch=6",
        "synthesis.part_samples=10",
        "sampling.batch=8",
        "evaluation.samples=8",
        "evaluation.batch=8",
    ]


def tiny_config(run_dir: Path, data: Path, *overrides: str) -> Config:
    """A configuration for the `dataset` fixture (or any other), later overrides winning."""
    return config_module.load(TINY, [*tiny_overrides(run_dir, data), *overrides])


def write_prompts(path: Path, per_bucket: int) -> None:
    """The first training prompts of every bucket, in the order of the list."""
    rows = [json.loads(line) for line in TRAIN_PROMPTS.read_text().splitlines()]
    chosen: dict[str, int] = dict.fromkeys(BUCKETS, 0)
    lines = []
    for row in rows:
        if chosen[row["bucket"]] < per_bucket:
            chosen[row["bucket"]] += 1
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test, with the fixtures that it is first to need, starts alike, whatever ran before it in this process.

    Runs are compared bit for bit, and a test may have called a program that sets its own number of threads.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def own_ranks() -> Iterator[None]:
    """Ranks that stay serve one file's tests."""
    yield
    close_ranks()


@pytest.fixture(scope="session", autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code of exports that are loaded is copied to a place of this session's own, and not below the home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """The embedded teacher: 4 channels, patch size 1."""
    return ROOT / TEACHER


@pytest.fixture(scope="session")
def random_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SD3 folder of other shapes: 8 channels, patch size 2, dual attention, random weights."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=8,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    folder = tmp_path_factory.mktemp("random_teacher")
    pipeline = StableDiffusion3Pipeline.from_pretrained(ROOT / TEACHER, transformer=transformer, vae=vae)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _latents(data: Path, *overrides: str) -> Path:
    write_prompts(data.parent / "prompts.jsonl", PER_BUCKET // 3)
    synthesize(tiny_config(data.parent / "run", data, *overrides), ALONE)
    return data


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 latents in each of three buckets, by the embedded teacher. Read only: copy it to change it."""
    return _latents(tmp_path_factory.mktemp("dataset") / "latents")


@pytest.fixture(scope="session")
def random_dataset(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path) -> Path:
    """As `dataset`, by `random_teacher`: for runs that are compared within rounding.

    Rounding reaches 1e-4 in the embedded teacher's heads, where it tips single LeakyReLUs over, whose derivative
    jumps: which ones depends on the processor.
    """
    return _latents(tmp_path_factory.mktemp("random_dataset") / "latents", f"teacher.path={random_teacher}")


@pytest.fixture(scope="session")
def privileged() -> None:
    """Root with the right to make namespaces."""
    require("ip", "unshare", trial=("unshare", "-n", "-m", "true"))
