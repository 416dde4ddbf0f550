"""What a person at the command line sees: help, and one clear line for every kind of bad input."""

import json
import os
import resource
import runpy
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALONE, ROOT, TEACHER, TINY, tiny_config, tiny_overrides
from diffusers import AutoencoderKL, SD3Transformer2DModel
from hypothesis import assume, given
from hypothesis import strategies as st
from latents import damage
from launch import launch
from PIL import Image
from ranks import ranks
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from ladd_dist.checkpoints import reader as checkpoint
from ladd_dist.config import Config, load
from ladd_dist.data.mds import Manifest
from ladd_dist.distributed import world as distributed
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.files.run_lock import RunLock
from ladd_dist.training import trainer
from ladd_dist.training.trainer import Trainer

LAUNCHERS = sorted(path.name for path in (ROOT / "launchers").glob("*.py"))

Refused = Callable[..., str]


@pytest.fixture
def run_launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a launcher in this process, as Python would, and return its exit code."""

    def run(name: str, *args: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"launchers/{name}", *args])
        try:
            runpy.run_path(f"launchers/{name}", run_name="__main__")
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    return run


@pytest.fixture
def refused(
    run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path
) -> Refused:
    """Run a launcher on the tiny configuration and return the one line that it leaves on stderr."""

    def run(name: str, *args: str) -> str:
        capsys.readouterr()
        code = run_launcher(name, "--config", TINY, *tiny_overrides(tmp_path, dataset), *args)
        lines = capsys.readouterr().err.splitlines()
        assert code == 2, lines
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert not any("Traceback" in line for line in lines)
        return errors[0]

    return run


# Help


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_shows_an_example_that_names_this_launcher(
    name: str, run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_launcher(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"python launchers/{name} --config configs/" in shown
    assert "key.sub=value" in shown and "train.iterations=5" in shown


@pytest.mark.parametrize("name", LAUNCHERS)
def test_without_a_config_the_usage_is_shown(
    name: str, run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_launcher(name) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_count_from_one(
    run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str], rounds: str
) -> None:
    assert run_launcher("bench.py", "--config", TINY, "--what", "step", "--rounds", rounds) == 2
    assert "argument --rounds: must be an integer from 1 to " in capsys.readouterr().err


def test_a_launcher_is_a_program_with_help() -> None:
    result = launch(["train.py", "--help"])
    assert (result.returncode, result.stderr) == (0, "")
    assert "torchrun --nproc-per-node 8 launchers/train.py" in result.stdout


# Configuration

_BAD_KEYS = [
    ("train.iteration=5", "unknown key 'train.iteration': did you mean 'iterations'?"),
    ("student_optimiser.lr=1", "unknown key 'student_optimiser': did you mean 'student_optimizer'?"),
    ("sampling.zzz=5", "unknown key 'sampling.zzz': known keys here are steps, batch"),
    ("train.iterations=many", "train.iterations: input should be a valid integer, not 'many'"),
    ("train.iterations=1.5", "train.iterations: input should be a valid integer"),
    ("train.iterations=0", "train.iterations: input should be greater than 0, not 0"),
    ("train.micro_batch=true", "train.micro_batch: input should be a valid integer, not True"),
    ("engine=zero2", "engine=zero2 is not known: set engine to local, fsdp2, zero3"),
    ("engine=2", "engine: input should be a valid string, not 2"),
    ("sampling.steps=3", "sampling.steps=3 must divide the 4 method.student_times: set 4 or 2 or 1"),
    ("sampling.steps=8", "sampling.steps=8 must divide the 4 method.student_times: set 4 or 2 or 1"),
    ("sampling.steps=0", "sampling.steps: input should be greater than 0, not 0"),
    ("method.student_times=[]", "method.student_times: list should have at least 1 item"),
    ("method.student_times=[0.9,0.5,0.2,0.1]", "method: student_times must begin with 1, the pure noise that"),
    ("method.student_times=[1,0.5,0.5,0.1]", "method: student_times must descend, each once, not [1.0, 0.5, 0.5"),
    ("method.student_times=[1,0.2,0.5,0.1]", "method: student_times must descend, each once, not [1.0, 0.2, 0.5"),
    ("synthesis.buckets=[32]", "synthesis.buckets.0: input should be a valid string, not 32"),
    ("synthesis.buckets=[big]", "synthesis.buckets.0: string should match pattern"),
    ("synthesis.guidance=0.5", "synthesis.guidance: input should be greater than or equal to 1, not 0.5"),
    ("run_dir=", "run_dir: input should be a valid string, not None"),
    ("synthesis.buckets=[]", "synthesis.buckets: list should have at least 1 item"),
    ("teacher=5", "teacher: input should be a valid"),
    ("train.log_every=4", "train: log_every=4 must divide checkpoint_every=2"),
    ("train.micro_batch=3", "train: micro_batch=3 must divide global_batch=8"),
    ("discriminator.groups=5", "discriminator: groups=5 must divide width=16 and out_width=16"),
    (
        "student_optimizer={lr: 1, final_lr_ratio: 0.1}",
        "student_optimizer.final_lr_ratio=0.1 is only read by decay=cosine, but student_optimizer.decay=constant",
    ),
    ("method.probabilities=[0.5,0.5]", "method: probabilities needs one entry for each of the 4 student_times"),
    ("method.probabilities=[1,1,0,0]", "method: probabilities must sum to 1, not 2"),
    ("train", "override 'train' is not of the form key.sub=value"),
    ("=5", "override '=5' is not of the form key.sub=value"),
    ("seed.more=5", "override 'seed.more=5': 'seed' is a value, not a section"),
    ("seed=[1", "override 'seed=[1': '[1' is not a YAML value"),
]


@pytest.mark.parametrize(("override", "message"), _BAD_KEYS, ids=[override for override, _ in _BAD_KEYS])
def test_a_bad_key_or_value_is_named(refused: Refused, override: str, message: str) -> None:
    assert message in refused("train.py", override)


_ZERO3_COMPILED = "compile=true: the hooks of engine=zero3 cannot be compiled; set engine=fsdp2"
_ON_CPU = "state=8bit needs a GPU, but this run is on the CPU: set"
_UNFIT = [
    ("fsdp2.replicas=2", "fsdp2.replicas is only read by engine=fsdp2, but engine=local"),
    (
        "engine=zero3 fsdp2.forward_prefetch=1",
        "fsdp2.forward_prefetch is only read by engine=fsdp2, but engine=zero3",
    ),
    ("engine=fsdp2 zero3.offload=all", "zero3.offload is only read by engine=zero3, but engine=fsdp2"),
    (
        "engine=zero3 student_optimizer.state=8bit",
        "engine=zero3 partitions only fp32 state; set fp32, or engine=fsdp2",
    ),
    ("engine=zero3 zero3.offload=optimizer student_optimizer.state=8bit", "engine=zero3 offloads only fp32 state"),
    ("engine=zero3 student.compile=true", _ZERO3_COMPILED),
    ("engine=zero3 teacher.compile=true teacher.placement=shard", _ZERO3_COMPILED),
    ("student_optimizer.state=8bit", f"student_optimizer.{_ON_CPU} student_optimizer.state=fp32"),
    ("head_optimizer.state=8bit", f"head_optimizer.{_ON_CPU} head_optimizer.state=fp32"),
]


@pytest.mark.parametrize(("overrides", "message"), _UNFIT, ids=[overrides for overrides, _ in _UNFIT])
def test_settings_that_do_not_fit_one_another_are_named(refused: Refused, overrides: str, message: str) -> None:
    assert message in refused("train.py", *overrides.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "is not valid YAML"),
        ("- 1\n- 2\n", "must hold a mapping of sections, see configs/tiny_cpu.yaml"),
        ("", "must hold a mapping of sections"),
        ("run_dir: runs/x\n", "missing key 'teacher': add it to the file or pass teacher=VALUE"),
    ],
)
def test_a_bad_config_file_is_named(
    run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert run_launcher("train.py", "--config", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(path) in line and message in line


def test_a_config_file_that_is_not_text_is_named(
    run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert run_launcher("train.py", "--config", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: config file {path}")


@pytest.mark.parametrize("value", ["1e-4", "1.e-4", "1.0e-4", "1E-4", "0.0001"])
def test_rates_may_be_written_with_an_exponent(dataset: Path, value: str) -> None:
    assert tiny_config(dataset, dataset, f"student_optimizer.lr={value}").student_optimizer.lr == 1e-4


_TREE = load(TINY).model_dump()


@given(st.sampled_from(sorted(_TREE)), st.text("abcdefgh_", min_size=1, max_size=8))
def test_no_key_is_ignored(section: str, name: str) -> None:
    known = _TREE[section]
    if isinstance(known, dict):
        assume(name not in known)
        key = f"{section}.{name}"
    else:
        key = f"{section}_{name}"
    with pytest.raises(LaddError, match=f"unknown key '{key}'"):
        load(TINY, [f"{key}=1"])


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load(TINY, ["seed=3", "discriminator.blocks=[1,3]", "student_optimizer.eps=1.0e-9", "run_dir='2024'"])
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


# Data


def test_a_missing_dataset_is_named(refused: Refused, tmp_path: Path) -> None:
    line = refused("train.py", f"data.path={tmp_path / 'none'}")
    assert f"no dataset at data.path={tmp_path / 'none'}" in line and "run launchers/synthesize.py" in line


def test_a_bucket_that_is_too_small_is_named(refused: Refused) -> None:
    line = refused("train.py", "train.global_batch=32", "train.micro_batch=32")
    assert "bucket 32x32" in line and "24 samples" in line and "lower train.global_batch" in line


def test_other_latent_channels_are_named(refused: Refused, random_teacher: Path) -> None:
    line = refused("train.py", f"teacher.path={random_teacher}")
    assert "4 channels" in line and "has 8" in line and "set teacher.path" in line


def test_a_damaged_manifest_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    line = refused("train.py", f"data.path={tmp_path / 'bad'}")
    assert "manifest.json is damaged" in line and "run launchers/synthesize.py again" in line


def test_a_student_of_other_shapes_is_named(refused: Refused, random_teacher: Path) -> None:
    line = refused("train.py", f"student.path={random_teacher}")
    assert "has in_channels=8, but the teacher has 4" in line


def test_a_bucket_without_prompts_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a three", "bucket": "32x32"}\n')
    line = refused("synthesize.py", f"synthesis.prompts={tmp_path / 'p.jsonl'}", f"data.path={tmp_path / 'new'}")
    assert "bucket 32x64 gets no prompt from" in line and "synthesis.buckets" in line


def test_a_manifest_of_a_lost_bucket_is_named(refused: Refused, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    manifest = Manifest.read(dataset)
    replace(manifest, counts=manifest.counts | {"64x64": 100}).write(tmp_path / "data")
    line = refused("train.py", f"data.path={tmp_path / 'data'}")
    assert "64x64/index.json is missing: run launchers/synthesize.py again" in line


@pytest.mark.parametrize("name", ["train.py", "synthesize.py"])
def test_a_flipped_bit_is_named(refused: Refused, dataset: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    part = tmp_path / "data" / "32x64" / "part-00001"
    damage(part / "shard.00000.mds", "flip", 0.5)
    line = refused(name, f"data.path={tmp_path / 'data'}")
    assert f"{part / 'shard.00000.mds'} is damaged (its xxh64 " in line
    assert f"delete {part} and run launchers/synthesize.py again (encode.py or pairs.py for given" in line


def test_missing_prompts_are_named(refused: Refused, tmp_path: Path) -> None:
    line = refused("synthesize.py", f"synthesis.prompts={tmp_path / 'none.txt'}", f"data.path={tmp_path / 'd'}")
    assert f"prompt file {tmp_path / 'none.txt'} cannot be read" in line


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("train.py", ["train.preview_every=1"]), ("sample.py", []), ("evaluate.py", []), ("export.py", [])],
)
def test_missing_prompts_are_named_before_a_network_is_loaded(
    refused: Refused,
    copied_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    overrides: list[str],
) -> None:
    for network in (SD3Transformer2DModel, AutoencoderKL, CLIPTextModelWithProjection):
        monkeypatch.setattr(network, "from_pretrained", lambda *_, **__: pytest.fail("a network is loaded"))
    monkeypatch.setattr(trainer, "build_method", lambda *_: pytest.fail("networks are built"))
    line = refused(name, f"evaluation.prompts={tmp_path / 'none.txt'}", *overrides)
    assert f"prompt file {tmp_path / 'none.txt'} cannot be read" in line


def test_a_bucket_that_does_not_divide_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a one\n")
    line = refused(
        "synthesize.py",
        f"synthesis.prompts={tmp_path / 'p.txt'}",
        "synthesis.buckets=[30x32]",
        f"data.path={tmp_path}",
    )
    assert "bucket 30x32: height and width must be multiples of 4" in line


@pytest.mark.parametrize("launcher", [["synthesize.py"], ["encode.py", "--pictures", "none.jsonl"]])
def test_a_method_that_needs_pairs_has_no_other_latents_made(
    run_launcher: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, launcher: list[str]
) -> None:
    assert run_launcher(*launcher, "--config", "configs/tiny_dpo.yaml", f"data.path={tmp_path / 'pairs'}") == 2
    said = capsys.readouterr().err
    assert "error: method.name=dpo needs preference pairs" in said and "launchers/pairs.py" in said
    assert not (tmp_path / "pairs/plan.json").exists()


def test_another_plan_is_refused_with_the_key(refused: Refused) -> None:
    line = refused("synthesize.py", "synthesis.steps=9")
    assert "steps=2, but this run has steps=9" in line and "set data.path to a new folder" in line


def test_a_damaged_plan_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "plan.json").write_text("{")
    line = refused("synthesize.py", f"data.path={tmp_path / 'data'}")
    assert f"{tmp_path / 'data' / 'plan.json'} is damaged" in line and "set data.path to a new folder" in line


# Teacher


@pytest.mark.parametrize("name", ["train.py", "synthesize.py"])
def test_a_missing_teacher_is_named(refused: Refused, name: str) -> None:
    line = refused(name, "teacher.path=/nowhere/teacher")
    assert "teacher folder /nowhere/teacher does not exist: set teacher.path" in line


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_teacher_without_a_component_is_named(refused: Refused, tmp_path: Path, part: str) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher", ignore=shutil.ignore_patterns(part))
    line = refused("train.py", f"teacher.path={tmp_path / 'teacher'}")
    assert f"{tmp_path / 'teacher'} has no {part}/: teacher.path must be a whole diffusers folder" in line


def test_a_teacher_without_text_encoders_is_named(refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher", ignore=shutil.ignore_patterns("text_encoder*"))
    line = refused("synthesize.py", f"teacher.path={tmp_path / 'teacher'}", f"data.path={tmp_path / 'd'}")
    assert f"{tmp_path / 'teacher'} has no text_encoder/" in line


def test_a_teacher_of_another_kind_is_named(refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher")
    path = tmp_path / "teacher" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "FluxTransformer2DModel"}))
    line = refused("train.py", f"teacher.path={tmp_path / 'teacher'}")
    assert "_class_name=FluxTransformer2DModel: set teacher.path to a folder of SD3Transformer2DModel" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("diffusion_pytorch_model.safetensors", b""),
        ("diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1\nsize 1\n"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\nsize 1\n"),
    ],
    ids=["empty weights", "weights not downloaded", "config not downloaded"],
)
def test_a_teacher_not_wholly_downloaded_is_named(
    refused: Refused, tmp_path: Path, name: str, content: bytes
) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher")
    path = tmp_path / "teacher" / "transformer" / name
    path.write_bytes(content)
    line = refused("train.py", f"teacher.path={tmp_path / 'teacher'}")
    assert str(path) in line and "download it again" in line


@pytest.mark.parametrize("key", ["teacher.path", "student.path"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shape: None, "has no tensor {name}: its weights do not belong to its config.json"),
        (lambda shape: [3, *shape[1:]], "{name} has shape [3], but config.json says [64]"),
    ],
    ids=["missing", "another shape"],
)
def test_weights_that_do_not_belong_to_their_config_are_named(
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    key: str,
    change: Callable[[list[int]], list[int] | None],
    message: str,
) -> None:
    """Before anything is allocated for a network."""
    monkeypatch.setattr(trainer, "build_method", lambda *_: pytest.fail("networks are being built"))
    folder, name = tmp_path / "other", "transformer_blocks.2.attn.to_q.bias"
    shutil.copytree(TEACHER, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    shape = change(list(tensors.pop(name).shape))
    save_file(tensors if shape is None else tensors | {name: torch.zeros(shape)}, path)
    line = refused("train.py", f"{key}={folder}")
    assert f"{folder}/transformer" in line and message.format(name=name) in line


@pytest.mark.parametrize("name", ["synthesize.py", "train.py", "sample.py", "evaluate.py", "export.py"])
def test_networks_that_do_not_fit_are_named_before_one_is_loaded(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, copied_run: Path, tmp_path: Path, name: str
) -> None:
    for kind in (SD3Transformer2DModel, AutoencoderKL, CLIPTextModelWithProjection):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("a network is being loaded"))
    folder = shutil.copytree(TEACHER, tmp_path / "teacher")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 16}))
    line = refused(name, f"teacher.path={folder}")
    assert f"{folder}: the VAE's latent_channels is 16, but the transformer's in_channels is 4" in line


def test_blocks_that_the_teacher_does_not_have_are_named(refused: Refused) -> None:
    assert "discriminator.blocks=[1, 9]: the teacher has blocks 0 to 3" in refused(
        "train.py", "discriminator.blocks=[1,9]"
    )


# Launching


def test_a_sharded_engine_needs_a_process_group(refused: Refused) -> None:
    line = refused("train.py", "engine=fsdp2")
    assert "engine=fsdp2 needs a process group: start with torchrun, or set engine=local" in line
    assert "start with deepspeed" in refused("train.py", "engine=zero3")


def test_a_missing_gpu_is_named(refused: Refused) -> None:
    assert "device=cuda, but no GPU is visible: set device=auto or device=cpu" in refused("train.py", "device=cuda")


def test_the_shared_pass_needs_the_batch_in_one(refused: Refused) -> None:
    line = refused("train.py", "train.micro_batch=4")
    assert "set method.fake_pass=two_pass, or train.micro_batch=8" in line


def test_ranks_that_do_not_divide_the_batch_all_leave(tmp_path: Path, dataset: Path) -> None:
    args = [*tiny_overrides(tmp_path, dataset), "engine=fsdp2", "train.micro_batch=2"]
    result = launch(["train.py", "--config", TINY, *args], ranks=3)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 3, result.stderr
    for line in errors:
        assert "train.global_batch=8 is not a multiple of 3 ranks: change it, or the number of ranks" in line
    assert not (tmp_path / "metrics.jsonl").exists()


def _refusal(world: World, config: Config) -> str:
    with pytest.raises(LaddError) as caught:
        Trainer(config, world)
    return str(caught.value)


@pytest.mark.parametrize("replicas", [3, 4])
def test_a_mesh_that_the_ranks_do_not_fill_is_refused(tmp_path: Path, dataset: Path, replicas: int) -> None:
    config = tiny_config(tmp_path, dataset, "engine=fsdp2", "train.micro_batch=null", f"fsdp2.replicas={replicas}")
    line = f"fsdp2.replicas={replicas} does not divide 2 ranks: choose a divisor of them"
    assert ranks(2)(_refusal, config) == [line, line]


def test_the_local_engine_is_one_process(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(LaddError, match="engine=local runs in one process, but 2 were started: set engine=fsdp2"):
        Trainer(tiny_config(tmp_path, dataset), replace(ALONE, size=2))


def test_a_real_process_leaves_one_line_and_code_2(tmp_path: Path) -> None:
    result = launch(["train.py", "--config", str(tmp_path / "none.yaml")])
    problem = "cannot be read (No such file or directory): pass --config FILE"
    assert (result.returncode, result.stderr) == (2, f"error: config file {tmp_path / 'none.yaml'} {problem}\n")


# Checkpoints


@pytest.mark.parametrize("name", ["sample.py", "evaluate.py", "export.py"])
def test_without_a_checkpoint_there_is_nothing_to_use(refused: Refused, tmp_path: Path, name: str) -> None:
    line = refused(name)
    assert f"no checkpoint at {tmp_path}/checkpoints: run launchers/train.py first" in line
    assert f"no checkpoint at {tmp_path}/nowhere" in refused(name, "--checkpoint", f"{tmp_path}/nowhere")


def test_a_report_of_nothing_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("report.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    Trainer(tiny_config(run_dir, dataset, "train.iterations=1"), ALONE).run()
    return run_dir


@pytest.fixture
def copied_run(trained: Path, tmp_path: Path) -> Path:
    """A run of one iteration where `refused` has its run_dir."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints" / "step-00000001"


@pytest.mark.parametrize("name", ["train.py", "sample.py", "evaluate.py", "export.py"])
def test_a_run_whose_only_checkpoint_is_corrupt_is_refused(
    refused: Refused, copied_run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(checkpoint, "warn", warned.append)
    file = copied_run / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    line = refused(name)
    assert f"all checkpoints in {copied_run.parent} are damaged: restore one, or set a new run_dir" in line
    (warning,) = warned
    assert f"checkpoint {copied_run} is damaged ({file.name} is not what SHA256SUMS says)" in warning


@pytest.mark.parametrize("name", ["sample.py", "evaluate.py", "export.py"])
def test_a_corrupt_checkpoint_that_was_asked_for_is_named(refused: Refused, copied_run: Path, name: str) -> None:
    file = copied_run / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    line = refused(name, "--checkpoint", str(copied_run))
    assert f"checkpoint {copied_run} is damaged ({file.name} is not what SHA256SUMS says): pass another" in line


@pytest.mark.parametrize(
    ("key", "theirs", "ours"), [("discriminator.width", 16, 32), ("method.r1_weight", 0.01, 0.5), ("seed", 0, 1)]
)
def test_another_run_cannot_go_on(refused: Refused, copied_run: Path, key: str, theirs: float, ours: float) -> None:
    line = refused("train.py", f"{key}={ours}")
    assert f"checkpoint {copied_run} was trained with {key}={theirs}" in line
    assert f"this configuration has {ours}: restore it, or set a new run_dir" in line


@pytest.mark.parametrize("name", ["sample.py", "export.py"])
def test_another_students_checkpoint_is_named(refused: Refused, copied_run: Path, tmp_path: Path, name: str) -> None:
    config = SD3Transformer2DModel.load_config(f"{TEACHER}/transformer") | {"num_layers": 2}
    SD3Transformer2DModel.from_config(config).save_pretrained(tmp_path / "small" / "transformer")
    line = refused(name, f"student.path={tmp_path / 'small'}")
    assert f"checkpoint {copied_run} does not fit the student at {tmp_path / 'small'}" in line
    assert "pass the run's own config.yaml" in line


def test_an_unknown_judge_is_named(refused: Refused, copied_run: Path) -> None:
    assert "evaluation.judge=inception is unknown: use 'digits', 'teacher' or 'clip:FOLDER'" in refused(
        "evaluate.py", "evaluation.judge=inception"
    )


def test_a_size_to_sample_that_the_networks_cannot_take_is_named(refused: Refused) -> None:
    line = refused("sample.py", "--prompt", "a one", "--size", "32x30")
    assert "bucket 32x30: height and width must be multiples of 4" in line
    line = refused("sample.py", "--prompt", "a one", "--size", "32x68")
    assert "a latent of 8x17 exceeds the teacher's position table of 16x16" in line


def test_a_seed_that_cannot_count_on_is_named(refused: Refused) -> None:
    line = refused("sample.py", "--seed", str(2**63 - 1), "--prompt", "a one", "--prompt", "a two")
    assert f"--seed {2**63 - 1} leaves no seeds for 2 pictures" in line


@pytest.mark.parametrize("flag", [(), ("--overwrite",)])
def test_only_an_earlier_export_is_ever_overwritten(
    refused: Refused, tmp_path: Path, dataset: Path, flag: tuple[str, ...]
) -> None:
    """Said before the checkpoint is looked for: there is none."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    run = tmp_path / "checkpoints"
    for out, problem in {
        mine: f"{mine} exists and holds no export of an earlier call",
        tmp_path: f"{tmp_path} is run_dir=",
        run: f"{run} lies in run_dir=",
        dataset: f"{dataset} is data.path=",
        dataset / "32x32": "lies in data.path=",
        TEACHER: "is teacher.path=",
        f"{TEACHER}/../teacher/new": "lies in teacher.path=",
        ".": "holds teacher.path=",
    }.items():
        assert problem in refused("export.py", "--out", str(out), *flag)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_an_earlier_export_is_overwritten_when_asked_for(
    refused: Refused, run_launcher: Callable[..., int], copied_run: Path, tmp_path: Path, dataset: Path
) -> None:
    args = ["--config", TINY, *tiny_overrides(tmp_path, dataset), "--out", str(tmp_path / "out")]
    assert run_launcher("export.py", *args) == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((tmp_path / "config.yaml").stat().st_mode)}, "as of any new file"
    index = tmp_path / "out" / "model_index.json"
    written = index.read_text()
    index.write_text("{}")
    line = refused("export.py", "--out", str(tmp_path / "out"))
    assert f"export folder {tmp_path / 'out'} exists: pass --overwrite" in line
    assert run_launcher("export.py", *args, "--overwrite") == 0
    assert index.read_text() == written


def test_a_single_file_lies_beside_the_exported_folder(
    run_launcher: Callable[..., int], copied_run: Path, tmp_path: Path, dataset: Path, capfd: pytest.CaptureFixture
) -> None:
    options = [*tiny_overrides(tmp_path, dataset), "--format", "single", "--dtype", "bf16"]
    assert run_launcher("export.py", "--config", TINY, *options) == 0
    file = tmp_path / "export-single" / "export-single.safetensors"
    assert file.is_file()
    assert f"to {file}: draw with it at times 1, 0.75, 0.5, 0.25, with fresh noise" in capfd.readouterr().err


def test_an_export_to_a_full_disk_leaves_what_was_there(
    refused: Refused, copied_run: Path, tmp_path: Path, dataset: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        line = refused("export.py", "--out", str(tmp_path / "deep" / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"export folder {tmp_path / 'deep' / 'out'} could not be written (" in line and "too large" in line
    assert not (tmp_path / "deep").exists()


def test_sizes_to_sample_are_one_for_all_or_one_each(refused: Refused) -> None:
    prompts = ["--prompt", "a one", "--prompt", "a two", "--prompt", "a three"]
    line = refused("sample.py", *prompts, "--size", "32x32", "--size", "32x64")
    assert "2 --size for 3 prompts: give one for each in order, or one for all" in line
    assert "--size is for a --prompt, and none is given" in refused("sample.py", "--size", "32x32")


# What goes well


def test_flags_and_overrides_may_be_mixed(
    run_launcher: Callable[..., int], copied_run: Path, tmp_path: Path, dataset: Path
) -> None:
    args = [
        *tiny_overrides(tmp_path, dataset),
        "--config",
        TINY,
        "--prompt",
        "a one",
        "sampling.steps=1",
        "--seed",
        "5",
    ]
    assert run_launcher("sample.py", *args, "--local_rank", "0") == 0
    assert (tmp_path / "samples" / "32x32-00.png").is_file()
    assert (tmp_path / "samples" / "sheet.png").is_file()


def test_pictures_of_an_earlier_call_are_replaced_and_a_users_own_are_not(
    run_launcher: Callable[..., int], refused: Refused, copied_run: Path, tmp_path: Path, dataset: Path
) -> None:
    def sample(*prompts: str) -> int:
        args = ["--config", TINY, *tiny_overrides(tmp_path, dataset), "sampling.steps=1"]
        return run_launcher("sample.py", *args, *prompts)

    three = ["--prompt", "a one", "--prompt", "a two", "--prompt", "a three"]
    each = ["--size", "32x32", "--size", "64x32", "--size", "32x32"]
    assert sample(*three, *each) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "samples").glob("*.png")}
    assert sorted(first) == ["32x32-00.png", "32x32-01.png", "64x32-00.png", "sheet.png"]
    assert sample(*three, "--size", "32x32") == 0
    names = sorted(path.name for path in (tmp_path / "samples").glob("*.png"))
    assert names == ["32x32-00.png", "32x32-01.png", "32x32-02.png", "sheet.png"]
    for name, before in {"32x32-00.png": "32x32-00.png", "32x32-02.png": "32x32-01.png"}.items():
        pixels = [
            np.asarray(Image.open(file)).astype(int) for file in (tmp_path / "samples" / name, BytesIO(first[before]))
        ]
        assert abs(pixels[0] - pixels[1]).max() <= 1, "its seed is its number's, but for rounding in another batch"
    (tmp_path / "samples" / "mine.png").touch()
    assert "holds mine.png, which was not written with it: move it away" in refused("sample.py", *three)
    assert sorted(path.name for path in (tmp_path / "samples").glob("*.png")) == [*names[:3], "mine.png", names[3]]


def test_alone_means_no_group() -> None:
    world = distributed.start("cpu")
    assert (world.rank, world.size, world.is_main, str(world.device)) == (0, 1, True, "cpu")


# A folder of another job


@pytest.mark.parametrize(
    ("launcher", "key"),
    [("train.py", "run_dir"), ("bench.py --what step", "run_dir"), ("synthesize.py", "data.path")],
)
def test_a_folder_that_another_job_writes_in_is_refused(
    refused: Refused, tmp_path: Path, launcher: str, key: str
) -> None:
    lock, folder = RunLock(), tmp_path / "held"
    lock.acquire(folder, key, ALONE)
    line = refused(*launcher.split(), f"{key}={folder}")
    lock.release()
    assert f"{key}={folder} belongs to a job that is running (pid {os.getpid()} on host" in line


def test_a_folder_is_given_back_after_bad_input(refused: Refused, tmp_path: Path) -> None:
    refused("train.py", f"data.path={tmp_path / 'none'}")
    assert list(tmp_path.iterdir()) == []
