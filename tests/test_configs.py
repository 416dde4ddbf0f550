import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ladd_dist.config import Config, FlowMatchingConfig, Section, load
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.engines.settings import check_settings
from ladd_dist.errors import LaddError
from ladd_dist.methods.ladd.heads import DiscriminatorHeads
from ladd_dist.models.sd3.transformer import meta_transformer

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
SD35_LARGE, SD35_VAE = (
    json.loads((ROOT / f"tests/gpu/sd35_large/{name}/config.json").read_text(encoding="utf-8"))
    for name in ("transformer", "vae")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_parse_and_survive_a_round_trip(path, tmp_path):
    config = load(path)
    config.save(tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml") == config
    check_settings(config)


@pytest.fixture
def large_folder(tmp_path):
    """SD3.5 Large as its configs alone."""
    for name, content in {
        "transformer": SD35_LARGE,
        "vae": SD35_VAE,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_the_8b_config_builds_8b_networks_on_the_meta_device_under_either_engine(engine, large_folder):
    config = load(ROOT / "configs/sd35_large.yaml", [f"teacher.path={large_folder}", f"engine={engine}"])
    check_settings(config)
    net = meta_transformer(config.student.path or config.teacher.path)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(8.06e9, rel=1e-3)
    assert all(p.is_meta for p in net.parameters())
    with torch.device("meta"):
        heads = DiscriminatorHeads(config.discriminator, 38, net.inner_dim, net.config.pooled_projection_dim)
    assert len(heads.taps) == 38
    space = LatentSpace.of(large_folder)
    for name in config.synthesis.buckets:
        _, height, width = space.shape(Bucket.parse(name))
        rows, columns = space.grid(height, width)
        assert 0.95 < rows * columns / 4096 <= 1.0
    assert config.accumulation(128) == 1


def test_overrides_reach_nested_keys_with_yaml_values():
    config = load(
        "configs/tiny_cpu.yaml",
        ["train.iterations=7", "engine=zero3", "discriminator.blocks=[1,3]", "student.path=null"],
    )
    assert (config.train.iterations, config.engine, config.discriminator.blocks) == (7, "zero3", [1, 3])


@given(st.floats(1e-12, 1.0))
def test_learning_rates_may_be_written_as_people_write_them(value):
    for text in (f"{value:e}", f"{value:.0e}", repr(value)):
        assert load("configs/tiny_cpu.yaml", [f"student_optimizer.lr={text}"]).student_optimizer.lr == float(text)


def chain(folder: Path, **files: str) -> Path:
    """Configuration files of one folder, the first of which is returned."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_a_file_says_only_what_differs_from_those_it_extends(tmp_path):
    base = (ROOT / "configs/tiny_cpu.yaml").resolve()
    top = chain(
        tmp_path,
        top="extends: middle.yaml\ntrain: {iterations: 7}\nsynthesis: {buckets: [32x32]}\n",
        middle=f"extends: {base}\ntrain: {{iterations: 5, global_batch: 24}}\nengine: fsdp2\n",
    )
    found, plain = load(top, ["seed=3"]), load(base)
    assert (found.train.iterations, found.train.global_batch, found.engine, found.seed) == (7, 24, "fsdp2", 3)
    assert found.synthesis.buckets == ["32x32"]  # a list is replaced whole
    assert found.synthesis.prompts == plain.synthesis.prompts and found.teacher == plain.teacher


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "extends: b.yaml\n"}, "a.yaml: extends: b.yaml, but there is no "),
        (
            {"a": "extends: b.yaml\n", "b": "extends: a.yaml\n"},
            "which extends this file in turn: remove one of the two",
        ),
        ({"a": "extends: [b.yaml]\n"}, "extends names a config file, not ['b.yaml']"),
        ({"a": "extends: b.yaml\n", "b": "- 1\n"}, "b.yaml must hold a mapping of sections"),
    ],
)
def test_what_cannot_be_extended_is_said(tmp_path, files, words):
    with pytest.raises(LaddError, match=re.escape(words)):
        load(chain(tmp_path, **files))


def keys(section: type[Section]) -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        found.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= keys(field.annotation)
    return found


def test_every_key_is_read_by_the_program():
    files = [*ROOT.glob("ladd_dist/**/*.py"), *ROOT.glob("launchers/*.py")]
    own = "\n".join(p.read_text() for p in files if p.parent.name == "config")
    source = "\n".join(p.read_text() for p in files if p.parent.name != "config")
    unread = [
        k
        for k in keys(Config)
        if not re.search(rf"\.{k}\b", source) and not re.search(rf"(train|self|method)\.{k}\b", own)
    ]
    assert not unread


@pytest.mark.parametrize(
    ("overrides", "world", "words"),
    [
        (
            ["train.micro_batch=24"],
            3,
            "train.global_batch=48 is not a multiple of train.micro_batch=24 x 3 ranks",
        ),
        (["train.micro_batch=24"], 1, "set method.fake_pass=two_pass, or train.micro_batch=48"),
    ],
)
def test_world_sizes_that_do_not_fit_are_refused(overrides, world, words):
    with pytest.raises(LaddError, match=re.escape(words)):
        load("configs/tiny_cpu.yaml", overrides).accumulation(world)


def test_whether_the_batch_must_be_whole_is_asked_of_the_methods_section(monkeypatch):
    other = ["method={name: flow_matching}", "discriminator={}", "head_optimizer=null"]
    config = load("configs/tiny_cpu.yaml", ["train.micro_batch=24", *other])
    assert config.accumulation(1) == 2
    monkeypatch.setattr(FlowMatchingConfig, "whole_batch", ("method.pairs=all", "method.pairs=near"))
    with pytest.raises(LaddError, match="^method.pairs=all needs the whole batch .* set method.pairs=near, or train"):
        config.accumulation(1)


def test_a_method_with_a_discriminator_reads_its_settings_whatever_its_name(monkeypatch):
    monkeypatch.setattr(FlowMatchingConfig, "trains_heads", True)
    load("configs/tiny_cpu.yaml", ["method={name: flow_matching}"])
    with pytest.raises(LaddError, match="missing key 'head_optimizer'"):
        load("configs/tiny_cpu.yaml", ["method={name: flow_matching}", "head_optimizer=null"])


def test_without_a_micro_batch_a_rank_takes_its_share():
    config = load("configs/tiny_cpu.yaml")
    assert [config.micro_batch(n) for n in (1, 2, 3)] == [48, 24, 16]
    assert config.accumulation(2) == 1
    with pytest.raises(LaddError, match="train.global_batch=48 is not a multiple of 5 ranks"):
        config.accumulation(5)


def test_accumulation_counts_micro_batches_per_rank():
    assert load("configs/tiny_cpu.yaml", ["train.micro_batch=24"]).accumulation(2) == 1
    assert load("configs/tiny_cpu.yaml", ["train.micro_batch=8", "method.fake_pass=two_pass"]).accumulation(2) == 3
