"""Students of some of a folder's layers and heads: what they are made of, that they train, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, TEACHER, tiny_config
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.drawing.pipeline import Pipeline
from ladd_dist.errors import LaddError
from ladd_dist.methods.networks import student_blueprint
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.models.weights import FolderWeights
from ladd_dist.planning.memory import expected_state
from ladd_dist.planning.networks import check_networks
from ladd_dist.training.tracking import read_metrics
from ladd_dist.training.trainer import Trainer

DEPTH, HEADS, DIM, DUAL = 4, 3, 8, (0, 2)
WIDTH = HEADS * DIM


def transformer(**changes: Any) -> SD3Transformer2DModel:
    """Three heads and four blocks, two of them with SD3.5 medium's second attention; random weights and biases."""
    config = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": DEPTH,
        "attention_head_dim": DIM, "num_attention_heads": HEADS, "joint_attention_dim": 20,
        "caption_projection_dim": WIDTH, "pooled_projection_dim": 12, "pos_embed_max_size": 8,
        "dual_attention_layers": DUAL, "qk_norm": "rms_norm",
    } | changes  # fmt: skip
    torch.manual_seed(0)
    net = SD3Transformer2DModel(**config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start")
    transformer().save_pretrained(path / "transformer", max_shard_size="20KB")
    return path


def made(folder: Path, layers: tuple[int, ...] | None, heads: int | None) -> dict[str, Tensor]:
    """The tensors of the student that a folder makes."""
    return Start(str(folder), layers, heads).load(torch.float32).net.state_dict()


def velocity(net: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text, pooled = (torch.randn(2, *size, generator=generator) for size in ((4, 8, 4), (5, 20), (12,)))
    return net(latents, text, pooled, torch.tensor([250.0, 750.0]), return_dict=False)[0]


# What it is made of


def test_all_layers_and_all_heads_are_the_network_itself(folder: Path) -> None:
    whole = SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
    for layers, heads in ((tuple(range(DEPTH)), HEADS), (tuple(range(DEPTH)), None), (None, HEADS), (None, None)):
        ours = made(folder, layers, heads)
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_fewer_layers_compute_what_the_network_without_the_others_computes(folder: Path) -> None:
    """Diffusers' own forward pass with blocks taken out: the last block that is left updates a text nobody reads."""
    for layers in ((1, 3), (0, 2), (0, 1, 2), (2,)):
        whole = SD3Transformer2DModel.from_pretrained(folder / "transformer")
        whole.transformer_blocks = nn.ModuleList(whole.transformer_blocks[i] for i in layers)
        smaller = Start(str(folder), layers).load(torch.float32).net
        assert smaller.transformer_blocks[-1].context_pre_only
        torch.testing.assert_close(velocity(smaller), velocity(whole), rtol=1e-5, atol=1e-6)


def narrowed(folder: Path, heads: int) -> SD3Transformer2DModel:
    """By hand: the network of ``heads`` heads, its tensors cut out of the whole one's by loops over channels."""
    whole = SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
    net = transformer(num_attention_heads=heads, caption_projection_dim=heads * DIM)
    stream = [k * WIDTH // (heads * DIM) for k in range(heads * DIM)]
    attention = list(range(heads * DIM))

    def columns(size: int, kept: list[int]) -> list[int]:
        return [chunk * WIDTH + k for chunk in range(size // WIDTH) for k in kept]

    for name, tensor in net.state_dict().items():
        source = whole[name]
        for dimension, (size, new) in enumerate(zip(source.shape, tensor.shape, strict=True)):
            if size != new:
                projection = name.split(".")[-2]
                rows_of_heads = projection in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
                columns_of_heads = ".to_out." in name or "to_add_out" in name
                by_head = rows_of_heads if dimension == 0 else columns_of_heads
                kept = columns(size, attention if by_head else stream)
                source = source.index_select(dimension, torch.tensor(kept))
        tensor.copy_(source)
    return net


@pytest.mark.parametrize("heads", [1, 2])
def test_fewer_heads_keep_their_channels_of_every_tensor(folder: Path, heads: int) -> None:
    ours, theirs = made(folder, None, heads), narrowed(folder, heads).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_both_at_once_are_the_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    Start(str(folder), None, 2).load(torch.float32).net.save_pretrained(tmp_path / "transformer")
    after, at_once = made(tmp_path, (0, 2), None), made(folder, (0, 2), 2)
    assert after.keys() == at_once.keys()
    assert all(torch.equal(after[name], at_once[name]) for name in after)


def test_a_width_that_divides_has_the_position_table_of_its_own_config(folder: Path) -> None:
    table = "pos_embed.pos_embed"
    own = transformer(num_attention_heads=1, caption_projection_dim=DIM).state_dict()[table]
    torch.testing.assert_close(made(folder, None, 1)[table], own)


@settings(max_examples=40)
@given(data=st.data())
def test_any_range_is_a_part_of_the_whole_tensor(folder: Path, data: st.DataObject) -> None:
    layers = data.draw(st.sets(st.integers(0, DEPTH - 1), min_size=1).map(lambda kept: tuple(sorted(kept))))
    start = Start(str(folder), layers, data.draw(st.sampled_from([None, 1, 2, 3])))
    whole, weights = start.load(torch.float32).state_dict(), start.weights()
    for name in data.draw(st.lists(st.sampled_from(sorted(whole)), min_size=1, max_size=20)):
        flat = whole[name].flatten()
        offset = data.draw(st.integers(0, flat.numel()))
        length = data.draw(st.integers(0, flat.numel() - offset))
        assert torch.equal(weights.read(name, offset, length), flat[offset : offset + length])


@pytest.mark.parametrize(("near", "read_at_once"), [(3, [7]), (2, [1, 1, 1])])
def test_no_other_rows_are_read_than_those_between_near_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, near: int, read_at_once: list[int]
) -> None:
    """Of 6 x WIDTH rows the student's first three, every third one."""
    monkeypatch.setattr("ladd_dist.models.weights._NEAR", near)
    read, asked = FolderWeights.read, list[int]()
    monkeypatch.setattr(
        FolderWeights, "read", lambda self, *args: asked.append(args[-1]) or read(self, *args)  # type: ignore[func-returns-value]
    )  # fmt: skip
    name = "net.transformer_blocks.0.norm1.linear.weight"
    Start(str(folder), (1,), 1).weights().read(name, 3, 2 * DIM)
    assert asked == [rows * WIDTH for rows in read_at_once]


def test_layers_of_a_teacher_in_bf16_are_rounded_as_a_whole_one_is(folder: Path) -> None:
    whole = family_of(folder).load(folder, torch.bfloat16)
    parts = Start(str(folder), tuple(range(DEPTH)), None).load(torch.bfloat16)
    assert parts.compute_dtype == torch.bfloat16
    ours, theirs = parts.state_dict(), whole.state_dict()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)


# As a run's student

SMALLER = ["student.layers=[0,3]", "student.heads=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """Two iterations of a student of half the layers and half the heads."""
    config = tiny_config(tmp_path_factory.mktemp("smaller"), dataset, *SMALLER, "train.iterations=2")
    check_networks(config)
    Trainer(config, ALONE).run()
    return config


def test_it_trains_and_its_memory_is_its_own(run: Config) -> None:
    rows = read_metrics(Path(run.run_dir))
    assert [row["iteration"] for row in rows] == [1, 2] and all(row["student_grad_norm"] > 0 for row in rows)
    elements = sum(p.numel() for p in student_blueprint(run, ALONE).on_meta().parameters())
    held = {kind: size for (_, kind), size in expected_state(run, 1).items()}
    whole = sum(p.numel() for p in Start(run.teacher.path).on_meta().parameters())
    assert held["masters"] == 4 * elements and elements < 0.2 * whole


def test_its_export_is_a_diffusers_folder_of_the_smaller_network_that_draws_the_same(
    run: Config, tmp_path: Path
) -> None:
    checkpoint = open_newest(run.run_dir, ALONE)
    assert checkpoint is not None
    out = export(run, checkpoint, tmp_path / "out", "student", torch.float32, PromptEntry(0, "a", Bucket(32, 64)))
    exported = StableDiffusion3Pipeline.from_pretrained(out, trust_remote_code=True).transformer
    assert (exported.config.num_layers, exported.config.num_attention_heads) == (2, 1)
    assert exported.config.caption_projection_dim == 32
    assert "from layers 0, 3 and the first 1 attention heads of `teacher`" in (out / "README.md").read_text()
    pipeline, student = Pipeline(run, ALONE.device), load_student(run, checkpoint, "student", torch.float32)
    encoded = pipeline.encode(["a three", "a four"], [1, 2], Bucket(32, 64))
    reloaded = family_of(out).load(out, torch.float32)
    assert torch.equal(pipeline.student(student, encoded), pipeline.student(reloaded, encoded))


@pytest.mark.parametrize(
    ("overrides", "key"), [(["student.layers=[0,2]", "student.heads=1"], "layers"), (SMALLER[:1], "heads")]
)
def test_another_students_checkpoint_is_named(run: Config, dataset: Path, overrides: list[str], key: str) -> None:
    checkpoint = open_newest(run.run_dir, ALONE)
    assert checkpoint is not None
    other = tiny_config(Path(run.run_dir), dataset, *overrides)
    with pytest.raises(LaddError, match=f"was trained with student.{key}=.*: pass the run's own config.yaml"):
        load_student(other, checkpoint, "ema", torch.float32)
    with pytest.raises(LaddError, match=f"was trained with student.{key}=.*restore it, or set a new run_dir"):
        Trainer(other, ALONE)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.layers=[0,4]"], f"student.layers has 4, but the 4 blocks of {TEACHER} are 0 to 3: remove it"),
        (["student.heads=3"], f"student.heads=3, but {TEACHER} has 2: set 2 or fewer, or null"),
    ],
)
def test_what_the_teacher_does_not_have_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(LaddError) as refused:
        check_networks(tiny_config(tmp_path, tmp_path, *overrides))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.layers=[]", "student.layers"),
        ("student.layers=[2,0]", r"must ascend, each once, not \[2, 0\]"),
        ("student.layers=[1,1]", r"must ascend, each once, not \[1, 1\]"),
        ("student.layers=[-1]", "student.layers"),
        ("student.heads=0", "student.heads"),
    ],
)
def test_what_no_network_has_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(LaddError, match=message) as refused:
        tiny_config(tmp_path, tmp_path, override)
    assert "\n" not in str(refused.value)


def test_a_width_that_the_text_does_not_have_is_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "start")
    file = tmp_path / "start" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"caption_projection_dim": 32}))
    with pytest.raises(LaddError, match="has caption_projection_dim=32, not its num_attention_heads") as refused:
        Start(str(tmp_path / "start"), None, 1).on_meta()
    assert "\n" not in str(refused.value)
