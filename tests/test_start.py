"""A sharded run starts in the memory of its shards: under a hard limit that no whole network fits in."""

import ctypes
import resource
from pathlib import Path

import pytest
import torch
from conftest import TEACHER, TINY
from diffusers import SD3Transformer2DModel
from launch import join, run_ranks, start_ranks

from ladd_dist.config import Config, load
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.methods.registry import build_method
from ladd_dist.models.sd3.transformer import meta_transformer
from ladd_dist.planning.memory import expected_state

_SPARE = 100 * 2**20
"""Bytes that a start may take beside its state, under half of the network; ZeRO-3 needs 60 to 70 MB of them."""
_MMAP_THRESHOLD = -3  # of mallopt(3)


@pytest.fixture(scope="module")
def mid_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 blocks, 57M parameters in two files: 228 MB."""
    folder = tmp_path_factory.mktemp("mid_teacher")
    SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=24, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=256, pooled_projection_dim=64,
        pos_embed_max_size=16, qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer", max_shard_size="150MB")  # fmt: skip
    return folder


def settings(teacher: Path | str, engine: str) -> Config:
    heads = [f"discriminator.{key}" for key in ("width=16", "out_width=16", "groups=4", "cond_width=16")]
    plain = ["student.compile=false", "teacher.compile=false"]  # whether that pays would be asked of the whole folder
    return load(TINY, [f"teacher.path={teacher}", *heads, *plain, f"engine={engine}", "teacher.placement=shard"])


def state_at_start(config: Config, world: World) -> int:
    """Bytes of `expected_state` before there is an average, and gradients, which ZeRO-3 has at once."""
    later = {"ema"} if config.engine == "zero3" else {"ema", "gradients"}
    return sum(
        size for (_, kind), size in expected_state(config, world.size, world.rank).items() if kind not in later
    )


def limit_memory(config: Config, world: World) -> None:
    """Let the process allocate the state, what is spare, and not one byte more."""
    # glibc would keep freed tensors for itself, ever larger ones, and the limit would count those.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 17)
    build_method(settings(TEACHER, config.engine), world, Clock(world))  # threads and buffers made once
    # The kernel counts mapped weights, teacher's and student's, though they take no memory of the process's own.
    mapped = 2 * sum(file.stat().st_size for file in Path(config.teacher.path).glob("*/*.safetensors"))
    limit = _data_size() + state_at_start(config, world) + mapped + _SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_size() -> int:
    """Bytes of private memory of this process, as RLIMIT_DATA counts it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) * 1024


def start(world: World, config: Config) -> None:
    limit_memory(config, world)
    networks = build_method(config, world, Clock(world))
    elements = sum(p.numel() for p in meta_transformer(config.teacher.path).parameters())
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # or the limit would show nothing
        torch.empty(3 * elements, dtype=torch.float32)  # one network; the two mapped ones are let go by now
    assert networks


@pytest.mark.parametrize(("engine", "size"), [("fsdp2", 4), ("zero3", 2)])
def test_no_rank_ever_holds_a_network_whole(mid_teacher: Path, engine: str, size: int) -> None:
    run_ranks(start, settings(mid_teacher, engine), size=size)


def build(world: World, config: Config) -> None:
    build_method(config, world, Clock(world))


def test_zero3_compiles_nothing_on_a_cpu(tmp_path: Path) -> None:
    """A compiler's lock that a killed process has left behind would hold up every start after it, without end."""
    processes = start_ranks(build, settings(TEACHER, "zero3"), size=2, env={"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    assert join(processes) == [0, 0]
    assert list(tmp_path.iterdir()) == []
