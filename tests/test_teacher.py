"""Teachers as people have them: as downloaded, without T5, with short configs, of parts that do not fit."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, TEACHER, tiny_config
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.reader import open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.check import check_dataset
from ladd_dist.data.mds import Manifest
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.drawing.pipeline import Pipeline, load_backbone
from ladd_dist.drawing.synthesis import synthesize
from ladd_dist.errors import LaddError
from ladd_dist.models.fingerprint import fingerprint
from ladd_dist.models.sd3.configs import load_config, text_config, vae_config
from ladd_dist.models.sd3.fit import check_shapes
from ladd_dist.models.sd3.text import TextEncoders
from ladd_dist.models.sd3.transformer import load_transformer, meta_transformer
from ladd_dist.models.sd3.vae import Vae
from ladd_dist.models.weights import FolderWeights
from ladd_dist.planning.networks import check_networks
from ladd_dist.training.trainer import Trainer

T5 = ("text_encoder_3", "tokenizer_3")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NET, TEXT = "diffusion_pytorch_model", "model"

Change = Callable[[Path], object]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A copy of the embedded teacher to spoil."""
    return Path(shutil.copytree(TEACHER, tmp_path / "teacher"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` takes one out."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))


def configured(teacher: Path, *overrides: str) -> Config:
    here = teacher.parent
    return tiny_config(here / "run", here / "data", f"teacher.path={teacher}", *overrides)


def refusal(config: Config) -> str:
    """The one line in which a configuration's networks are refused."""
    with pytest.raises(LaddError) as error:
        check_networks(config)
    (line,) = str(error.value).splitlines()
    return line


# Without T5


def null(folder: Path) -> None:
    edit(folder / "model_index.json", **{part: [None, None] for part in T5})


def plain_null(folder: Path) -> None:
    edit(folder / "model_index.json", **dict.fromkeys(T5))


def deleted(folder: Path) -> None:
    for part in T5:
        shutil.rmtree(folder / part)


def encoder_deleted(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_3")


WITHOUT_T5 = [null, plain_null, deleted, encoder_deleted]


@pytest.mark.parametrize("remove", WITHOUT_T5)
def test_without_t5_the_conditioning_is_the_pipelines_own(teacher: Path, remove: Change) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(teacher, text_encoder_3=None, tokenizer_3=None)
    prompts = ["a three", "a seven next to a two"]
    context, _, pooled, _ = pipeline.encode_prompt(
        prompts, prompts, prompts, do_classifier_free_guidance=False, max_sequence_length=7
    )
    remove(teacher)
    check_networks(configured(teacher))
    cond = TextEncoders(teacher, torch.float32, torch.device("cpu"), 7).encode(prompts)
    assert cond.context.shape == (2, 17, 64) and not cond.context[:, 10:].any()
    assert torch.equal(cond.context, context) and torch.equal(cond.pooled, pooled)


@pytest.mark.parametrize("remove", WITHOUT_T5)
def test_a_dataset_drawn_with_t5_is_not_one_drawn_without(teacher: Path, dataset: Path, remove: Change) -> None:
    config = tiny_config(teacher.parent / "run", dataset, f"teacher.path={teacher}")
    space = LatentSpace.of(teacher)
    check_dataset(config, space, fingerprint(teacher), ALONE)
    remove(teacher)
    with pytest.raises(LaddError, match="was made by teacher"):
        check_dataset(config, space, fingerprint(teacher), ALONE)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """Data and a checkpoint of a teacher whose T5 was deleted, and beside it what no pipeline reads."""
    folder = Path(shutil.copytree(TEACHER, tmp_path_factory.mktemp("distilled") / "teacher"))
    deleted(folder)
    clutter(folder)
    config = configured(
        folder,
        "train.preview_every=1",
        "train.iterations=1",
        "synthesis.images_per_prompt=1",
        f"synthesis.prompts={dataset.parent / 'prompts.jsonl'}",
    )
    synthesize(config, ALONE)
    Trainer(config, ALONE).run()
    return config


CLUTTER = {
    "text_encoders": ["t5xxl_fp8_e4m3fn.safetensors"],
    "transformer": [f"{NET}.fp16.safetensors", f"{NET}.bin", "flax_model.msgpack"],
    "vae": [f"{NET}.fp16.safetensors", "model.onnx"],
    "text_encoder": [f"{TEXT}.fp16.safetensors", "pytorch_model.bin"],
    "tokenizer": [".cache", "notes.md"],
    ".": ["sd3.5_large.safetensors", "README.md", "demo.png"],
}
"""Files that lie in the folders of the hub's SD3 repositories, and that their pipelines do not read."""


def clutter(folder: Path) -> None:
    for name, files in CLUTTER.items():
        (folder / name).mkdir(exist_ok=True)
        for file in files:
            shutil.copy(f"{TEACHER}/text_encoder_3/model.safetensors", folder / name / file)


@pytest.fixture(scope="module")
def exported(distilled: Config) -> Path:
    checkpoint = open_newest(distilled.run_dir, ALONE)
    assert checkpoint is not None
    example = PromptEntry(0, "a three", Bucket(32, 32))
    return export(distilled, checkpoint, Path(distilled.run_dir) / "export", "ema", torch.float32, example)


def test_a_student_of_a_teacher_without_t5_is_trained_and_exported(distilled: Config, exported: Path) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(
        exported, trust_remote_code=True, text_encoder_3=None, tokenizer_3=None
    )
    pipe.scheduler.step = partial(pipe.scheduler.step, generator=torch.default_generator)
    torch.manual_seed(5)
    theirs = pipe(
        "a three", num_inference_steps=2, guidance_scale=1.0, height=32, width=64, max_sequence_length=10,
        output_type="pt",
    ).images  # fmt: skip
    checkpoint = open_newest(distilled.run_dir, ALONE)
    assert checkpoint is not None
    pipeline, student = Pipeline(distilled, ALONE.device), load_student(distilled, checkpoint, "ema", torch.float32)
    ours = pipeline.decode(pipeline.student(student, pipeline.encode(["a three"], [5], Bucket(32, 64)), 2))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_export_says_that_it_has_no_t5(exported: Path) -> None:
    index = json.loads((exported / "model_index.json").read_text())
    assert [index[part] for part in T5] == [[None, None]] * 2
    assert "text_encoder_3=None, tokenizer_3=None" in (exported / "README.md").read_text()


def test_the_export_holds_what_the_pipeline_reads_and_nothing_else(exported: Path) -> None:
    clean = {path.relative_to(TEACHER) for path in Path(TEACHER).rglob("*") if path.is_file()}
    new = {Path("README.md"), Path("scheduler/few_step_scheduler.py")}
    expected = {path for path in clean if path.parts[0] not in T5} | new
    assert {path.relative_to(exported) for path in exported.rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "tokenizer", "vae", "scheduler", "transformer"])
def test_what_the_pipeline_cannot_do_without_is_named(teacher: Path, part: str) -> None:
    index = json.loads((teacher / "model_index.json").read_text())
    edit(teacher / "model_index.json", **{part: [None, None]})
    assert f"{teacher}/model_index.json has null for {part}: teacher.path must be" in refusal(configured(teacher))
    (teacher / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(teacher / part)
    assert f"{teacher} has no {part}/: teacher.path must be" in refusal(configured(teacher))


# Folders as downloaded


def test_the_fingerprint_of_a_clean_folder_is_what_it_was() -> None:
    assert fingerprint(TEACHER) == "98e551a89f64e4ce"


def test_files_that_the_pipeline_does_not_read_do_not_count(teacher: Path) -> None:
    clutter(teacher)
    assert fingerprint(teacher) == fingerprint(TEACHER)
    check_networks(configured(teacher))


def test_a_record_that_counted_such_files_is_still_this_teachers(teacher: Path, dataset: Path) -> None:
    """Fingerprints counted every ``*/*.safetensors`` once."""
    (teacher / "text_encoders").mkdir()
    shutil.copy(teacher / "text_encoder_3" / "model.safetensors", teacher / "text_encoders" / "t5.safetensors")
    data = Path(shutil.copytree(dataset, teacher.parent / "data"))
    for name in ("manifest.json", "plan.json"):
        (data / name).write_text((data / name).read_text().replace(fingerprint(TEACHER), "0181731e2f6c04c4"))
    (data / "SHA256SUMS").unlink()  # there was none then either
    config = configured(teacher, f"synthesis.prompts={dataset.parent / 'prompts.jsonl'}")
    check_dataset(config, LatentSpace.of(teacher), fingerprint(teacher), ALONE)
    assert synthesize(config, ALONE) == Manifest.read(data)
    (teacher / "text_encoders" / "t5.safetensors").write_bytes(POINTER)
    with pytest.raises(LaddError, match="was made by teacher 0181731e2f6c04c4"):
        check_dataset(config, LatentSpace.of(teacher), fingerprint(teacher), ALONE)


def as_in_the_cache(folder: Path) -> Path:
    """Files as links to blobs, as the hub's client leaves them."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    return blobs


def sharded(folder: Path) -> None:
    """Every network in several files."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        module = getattr(pipeline, name)
        for path in (folder / name).glob("*.safetensors"):
            path.unlink()
        size = "10KB" if name == "text_encoder_3" else "100KB"
        module.save_pretrained(folder / name, safe_serialization=True, max_shard_size=size)
        assert len([*(folder / name).glob("*.safetensors")]) > 1


@pytest.mark.parametrize("layout", [as_in_the_cache, sharded])
def test_linked_and_sharded_folders_are_the_same_teacher(teacher: Path, layout: Change) -> None:
    layout(teacher)
    check_networks(configured(teacher))
    pictures = []
    for folder in (teacher, Path(TEACHER)):
        pipeline = Pipeline(configured(folder), ALONE.device)
        network = load_backbone(str(folder), torch.float32, ALONE.device)
        encoded = pipeline.encode(["a three"], [1], Bucket(32, 32))
        pictures.append((encoded.cond.context, pipeline.decode(pipeline.teacher(network, encoded, 2, 1.5))))
    assert all(map(torch.equal, *pictures))
    for name, tensor in load_transformer(TEACHER, torch.float32).named_parameters():
        assert torch.equal(FolderWeights(teacher).read(f"net.{name}", 3, 9), tensor.flatten()[3:12])


def test_a_linked_folder_has_the_same_fingerprint(teacher: Path) -> None:
    as_in_the_cache(teacher)
    assert fingerprint(teacher) == fingerprint(TEACHER)


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../blobs/0")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


WEIGHTS = [f"transformer/{NET}", f"vae/{NET}"] + [f"text_encoder{n}/{TEXT}" for n in ("", "_2", "_3")]
FILES = {
    **{f"{file}.safetensors": [pointer, cut, emptied, dangling, directory] for file in WEIGHTS},
    **{
        file: [pointer, cut, emptied, dangling]
        for file in [
            "model_index.json",
            "transformer/config.json",
            "vae/config.json",
            "text_encoder_2/config.json",
            "text_encoder_3/config.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer_config.json",
        ]
    },
    **{
        file: [pointer, dangling, emptied]
        for file in ["tokenizer/vocab.json", "tokenizer_2/merges.txt", "tokenizer_3/tokenizer.json"]
    },
    "tokenizer_3/spiece.model": [emptied],
}
DAMAGES = [pytest.param(file, damage, id=f"{file}-{damage.__name__}") for file in FILES for damage in FILES[file]]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_file_that_is_not_whole_is_named_with_the_remedy(teacher: Path, file: str, damage: Change) -> None:
    damage(teacher / file)
    line = refusal(configured(teacher))
    assert line.startswith(f"{teacher / file} ") and "download it again" in line
    assert ("git lfs pull" in line) == (damage is pointer)
    assert ("links to a file that is not there" in line) == (damage is dangling)


def test_every_damage_is_said_alike_by_whoever_opens_the_component(teacher: Path) -> None:
    """Not only before a run: also a folder that changes under it."""
    for file in WEIGHTS:
        cut(teacher / f"{file}.safetensors")
    opened: list[Callable[[], object]] = [
        lambda: fingerprint(teacher),
        lambda: FolderWeights(teacher),
        lambda: load_transformer(teacher, torch.float32),
        lambda: TextEncoders(teacher, torch.float32, torch.device("cpu"), 7),
        lambda: Pipeline(configured(teacher), ALONE.device),
    ]
    for open_it in opened:
        with pytest.raises(LaddError, match=r"not a whole safetensors file .*: download it again"):
            open_it()


def lost_shard(folder: Path) -> str:
    file = sorted((folder / "transformer").glob("*.safetensors"))[1]
    file.unlink()
    return f"{file} cannot be read (No such file or directory): download it again"


def lost_text_shard(folder: Path) -> str:
    file = sorted((folder / "text_encoder_2").glob("*.safetensors"))[1]
    dangling(file)
    return f"{file} cannot be read (links to a file that is not there): download it again"


def listed_nowhere(folder: Path) -> str:
    index = folder / "vae" / f"{NET}.safetensors.index.json"
    edit(index, weight_map=["a"])
    return f"{index} is not a safetensors index (no weight_map): download it again"


def not_listed(folder: Path) -> str:
    index = folder / "text_encoder_2" / f"{TEXT}.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    shard = listed.pop("text_projection.weight")
    edit(index, weight_map=listed)
    return f"{index} does not list text_projection.weight, which {shard} has: download both again"


@pytest.mark.parametrize("damage", [lost_shard, lost_text_shard, listed_nowhere, not_listed])
def test_a_shard_that_folder_or_index_lacks_is_named(teacher: Path, damage: Callable[[Path], str]) -> None:
    sharded(teacher)
    assert damage(teacher) == refusal(configured(teacher))


def test_fp16_weights_alone_are_refused_with_the_command_that_helps(teacher: Path) -> None:
    for file in WEIGHTS:
        (teacher / f"{file}.safetensors").rename(teacher / f"{file}.fp16.safetensors")
    for folder, stem in (((teacher / file).parent, Path(file).name) for file in WEIGHTS):
        command = f"mv {stem}.fp16.safetensors {stem}.safetensors there"
        assert f"{folder} has its weights as a variant alone: to use them, {command}" in refusal(configured(teacher))
        (folder / f"{stem}.fp16.safetensors").rename(folder / f"{stem}.safetensors")
    check_networks(configured(teacher))


def test_sharded_fp16_weights_alone_are_used_once_the_index_is_renamed(teacher: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(teacher)
    for name in ("transformer", "text_encoder_3"):
        shutil.rmtree(teacher / name)
        getattr(pipeline, name).save_pretrained(teacher / name, variant="fp16", max_shard_size="10KB")
    for name, stem in (("transformer", NET), ("text_encoder_3", TEXT)):
        index = f"{stem}.safetensors.index.fp16.json"
        assert f"mv {index} {stem}.safetensors.index.json there" in refusal(configured(teacher))
        (teacher / name / index).rename(teacher / name / f"{stem}.safetensors.index.json")
    check_networks(configured(teacher))


def test_weights_in_another_format_alone_are_named(teacher: Path) -> None:
    (teacher / "vae" / f"{NET}.safetensors").rename(teacher / "vae" / f"{NET}.bin")
    assert f"{teacher}/vae has no {NET}.safetensors: weights must be safetensors" in refusal(configured(teacher))


def test_a_t5_of_which_only_the_config_is_left_is_named_with_both_ways_out(teacher: Path) -> None:
    (teacher / "text_encoder_3" / f"{TEXT}.safetensors").unlink()
    line = refusal(configured(teacher))
    assert "download those, or remove text_encoder_3/ to draw without it" in line


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_vocabulary_is_named(teacher: Path, file: str) -> None:
    (teacher / "tokenizer_2" / file).unlink()
    with pytest.raises(LaddError, match=r"teacher/tokenizer_2 cannot be loaded \(.*\): download it again"):
        TextEncoders(teacher, torch.float32, torch.device("cpu"), 7)


def test_an_encoder_without_its_tokenizer_is_named(teacher: Path) -> None:
    shutil.rmtree(teacher / "tokenizer_3")
    assert f"{teacher} has no tokenizer_3/" in refusal(configured(teacher))


@pytest.mark.parametrize(("name", "kind"), [("vae", AutoencoderKL), ("text_encoder_2", None)])
def test_weights_that_a_library_would_make_up_are_named(teacher: Path, name: str, kind: type | None) -> None:
    """Both libraries fill what a file lacks with random numbers."""
    key = "layers_per_block" if kind else "num_hidden_layers"
    edit(teacher / name / "config.json", **{key: 3})
    with pytest.raises(LaddError, match=rf"teacher/{name} has no tensor .*: its weights do not belong to its config"):
        Pipeline(configured(teacher), ALONE.device).decode(torch.zeros(1, 4, 8, 8))


# Configs that leave out keys


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Configs that leave everything to their classes' defaults."""
    kinds = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    for name, content in {
        **{name: {"_class_name": kind} for name, kind in kinds.items()},
        "text_encoder": {"model_type": "clip_text_model"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_keys_that_a_config_leaves_out_are_read_as_the_libraries_do(bare: Path) -> None:
    ours, theirs = load_config(bare), meta_transformer(bare).config
    assert {key: ours[key] for key in theirs if not key.startswith("_")} == {
        key: value for key, value in theirs.items() if not key.startswith("_")
    }
    with torch.device("meta"):
        vae = AutoencoderKL.from_config({}).config
    assert {key: vae_config(bare)[key] for key in ("latent_channels", "block_out_channels", "scaling_factor")} == {
        key: vae[key] for key in ("latent_channels", "block_out_channels", "scaling_factor")
    }
    text = text_config(bare, "text_encoder")
    assert (text["projection_dim"], text["hidden_size"]) == (CLIPTextConfig().projection_dim, 512)
    assert LatentSpace.of(bare).shape(Bucket(64, 32)) == (16, 64, 32)
    with pytest.raises(LaddError, match="exceeds the teacher's position table of 96x96"):
        LatentSpace.of(bare).shape(Bucket(194, 32))


def test_keys_that_were_defaults_when_saved_stay_defaults(bare: Path) -> None:
    edit(bare / "transformer" / "config.json", pos_embed_max_size=7, _use_default_values=["pos_embed_max_size"])
    assert load_config(bare)["pos_embed_max_size"] == meta_transformer(bare).config.pos_embed_max_size == 96


def test_output_channels_of_null_are_those_of_the_input(teacher: Path) -> None:
    edit(teacher / "transformer" / "config.json", out_channels=None)
    check_networks(configured(teacher))
    check_networks(tiny_config(teacher.parent / "run", teacher.parent / "data", f"student.path={teacher}"))


def test_a_teacher_whose_config_leaves_out_what_it_can_is_drawn_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=32,
        pooled_projection_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(latent_channels=16, block_out_channels=(8,), norm_num_groups=4)
    folder = tmp_path / "teacher"
    StableDiffusion3Pipeline.from_pretrained(TEACHER, transformer=transformer, vae=vae).save_pretrained(folder)
    left_out = ("sample_size", "patch_size", "in_channels", "out_channels", "pos_embed_max_size", "qk_norm")
    edit(folder / "transformer" / "config.json", **dict.fromkeys((*left_out, "dual_attention_layers"), ...))
    edit(folder / "vae" / "config.json", **dict.fromkeys(("down_block_types", "in_channels", "scaling_factor"), ...))
    config = configured(folder, "synthesis.buckets=[16x32]")
    assert check_networks(config).shape(Bucket(16, 32)) == (16, 16, 32)
    pipeline, network = Pipeline(config, ALONE.device), load_backbone(str(folder), torch.float32, ALONE.device)
    latents = pipeline.teacher(network, pipeline.encode(["a one"], [0], Bucket(16, 32)), 1, 1.0)
    assert latents.shape == (1, 16, 16, 32)
    assert pipeline.decode(latents).shape == (1, 3, 16, 32)


# What does not fit


def transformer(**changes: Any) -> Change:
    return lambda folder: edit(folder / "transformer" / "config.json", **changes)


def other(part: str, **changes: Any) -> Change:
    return lambda folder: edit(folder / part, **changes)


def tensors(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], file: str = f"transformer/{NET}"
) -> Change:
    def spoil(folder: Path) -> None:
        path = folder / f"{file}.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return spoil


def written(part: str, content: str) -> Change:
    return lambda folder: (folder / part).write_text(content, encoding="utf-8")


MISFITS: dict[str, tuple[Change, list[str], str]] = {
    "vae channels": (
        other("vae/config.json", latent_channels=16), [],
        "the VAE's latent_channels is 16, but the transformer's in_channels is 4: ",
    ),
    "another vae": (other("vae/config.json", _class_name="AutoencoderTiny"), [], "vae holds a AutoencoderTiny: only"),
    "output channels": (
        transformer(out_channels=8), [], "the transformer's out_channels is 8, but its in_channels is 4: ",
    ),
    "caption width": (
        transformer(caption_projection_dim=32), [],
        "the transformer's caption_projection_dim is 32, but its own width is 64: ",
    ),
    "pooled width": (
        other("text_encoder/config.json", projection_dim=48), [],
        "the CLIPs' projection_dim in sum is 80, but the transformer's pooled_projection_dim is 64: ",
    ),
    "clip width": (
        other("text_encoder_2/config.json", hidden_size=48), [],
        "the CLIPs' hidden_size in sum is 80, more than the transformer's joint_attention_dim=64: ",
    ),
    "t5 width": (
        other("text_encoder_3/config.json", d_model=32), [],
        "the T5's d_model is 32, but the transformer's joint_attention_dim is 64: ",
    ),
    "no class": (
        other("model_index.json", scheduler=5), [],
        "model_index.json has scheduler=5, which must be a library and a class, or null: download it again",
    ),
    "half a class": (
        other("model_index.json", text_encoder_3=["transformers"]), [], 'has text_encoder_3=["transformers"], which',
    ),
    "vae weights": (
        other("vae/config.json", layers_per_block=2), [],
        "vae has no tensor encoder.down_blocks.0.resnets.1.norm1.weight: its weights do not belong to its config",
    ),
    "clip weights": (
        other("text_encoder_2/config.json", intermediate_size=64), [],
        "mlp.fc1.weight has shape [128, 32], but config.json says [64, 32]",
    ),
    "t5 weights": (
        tensors(lambda all: {name: all[name] for name in all if name != "shared.weight"}, f"text_encoder_3/{TEXT}"),
        [], "text_encoder_3 has no tensor shared.weight: its weights do not belong to its config.json",
    ),
    "a config of no network": (
        transformer(qk_norm="none"), [], "transformer/config.json makes no network (unknown qk_norm: none.",
    ),
    "a config of no encoder": (
        other("text_encoder/config.json", num_attention_heads=3), [],
        "text_encoder/config.json makes no CLIPTextModelWithProjection (embed_dim must be divisible by num_heads",
    ),
    "quantized by config": (
        other("text_encoder_3/config.json", quantization_config={"quant_method": "bitsandbytes"}), [],
        "text_encoder_3/config.json has a quantization_config: download the network in full precision",
    ),
    "no vocabulary": (
        written("tokenizer/vocab.json", "{}"), [], "teacher/tokenizer cannot be loaded (Unable to create tensor",
    ),
    "half a vocabulary": (
        other("tokenizer/vocab.json", **{"three</w>": ...}), [],
        "tokenizer/vocab.json has no three</w>, which merges.txt makes: download both again",
    ),
    "no number": (
        other("tokenizer/vocab.json", **{"!": "x"}), [],
        'tokenizer/vocab.json has !="x", which must be a whole number of 0 or more',
    ),
    "no merges": (
        written("tokenizer_2/merges.txt", "#version: 0.2\n"), [], "tokenizer_2/merges.txt does not make ",
    ),
    "damaged t5 tokenizer": (
        written("tokenizer_3/tokenizer.json", "{"), [], "teacher/tokenizer_3 cannot be loaded (EOF while parsing",
    ),
    "no padding": (
        other("tokenizer/tokenizer_config.json", pad_token=None), [],
        "teacher/tokenizer cannot be loaded (Asking to pad but the tokenizer does not have a padding token",
    ),
    "another encoder": (
        other("text_encoder_3/config.json", model_type="bert"), [], "a model of type bert: only t5 is supported",
    ),
    "tokens": (
        other("tokenizer/tokenizer_config.json", model_max_length=77), [],
        "tokenizer_config.json has model_max_length=77, but the CLIPs know 10 positions: ",
    ),
    "no end of tokens": (
        other("tokenizer/tokenizer_config.json", model_max_length=...), [],
        "tokenizer_config.json has model_max_length=None, but the CLIPs know 10 positions: ",
    ),
    "heads": (lambda _: None, ["discriminator.blocks=[4]"], "[4]: the teacher has blocks 0 to 3"),
    "bucket and vae": (lambda _: None, ["synthesis.buckets=[30x32]"], "bucket 30x32: height and width must be"),
    "bucket and table": (
        lambda _: None, ["synthesis.buckets=[32x32,32x128]"],
        "bucket 32x128: a latent of 8x32 exceeds the teacher's position table of 16x16",
    ),
    "weights": (transformer(num_layers=5), [], "has shape [128, 64], but config.json says [384, 64]"),
    "norms that are not asked for": (
        transformer(qk_norm=None), [],
        "has a tensor transformer_blocks.0.attn.norm_added_k.weight, for which its config.json has no place",
    ),
    "one tensor more": (tensors(lambda all: all | {"quux": torch.zeros(1)}), [], "has a tensor quux, for which its"),
    "quantized": (
        tensors(lambda all: {name: tensor.to(torch.int8) for name, tensor in all.items()}), [],
        " is I8: save it in one of F64, F32, F16, BF16",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "overrides", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named(teacher: Path, spoil: Change, overrides: list[str], message: str) -> None:
    spoil(teacher)
    assert message in refusal(configured(teacher, *overrides))


STUDENTS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "channels": ({"in_channels": 8}, [], "has in_channels=8, but the teacher has 4: choose a student"),
    "patches": (
        {"patch_size": 3}, [], "bucket 32x32: a latent of 8x8 does not divide into the student's 3x3 patches",
    ),
    "positions": (
        {"pos_embed_max_size": 8}, [], "bucket 32x64: a latent of 8x16 exceeds the student's position table of 8x8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "overrides", "message"), STUDENTS.values(), ids=STUDENTS)
def test_a_student_that_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], overrides: list[str], message: str
) -> None:
    config = SD3Transformer2DModel.load_config(f"{TEACHER}/transformer") | changes
    SD3Transformer2DModel.from_config(config).save_pretrained(tmp_path / "student" / "transformer")
    configuration = tiny_config(tmp_path / "run", tmp_path / "data", f"student.path={tmp_path / 'student'}")
    assert message in refusal(configuration)


def test_buckets_of_the_data_that_the_student_cannot_draw_are_named(dataset: Path, tmp_path: Path) -> None:
    config = SD3Transformer2DModel.load_config(f"{TEACHER}/transformer") | {"pos_embed_max_size": 8}
    SD3Transformer2DModel.from_config(config).save_pretrained(tmp_path / "student" / "transformer")
    overrides = (f"student.path={tmp_path / 'student'}", "synthesis.buckets=[32x32]")
    configuration = tiny_config(tmp_path / "run", dataset, *overrides)
    with pytest.raises(LaddError, match="bucket 32x64: .* exceeds the student's position table of 8x8"):
        check_dataset(configuration, check_networks(configuration), fingerprint(TEACHER), ALONE)


def test_tokens_that_the_encoder_does_not_know_are_named(teacher: Path) -> None:
    """However few they are: its rows are numbered."""
    edit(teacher / "tokenizer_2" / "vocab.json", **{"!": 588})
    message = (
        "of text_encoder_2 makes tokens up to 588, but the encoder knows 586, from 0 on: they are not of one model"
    )
    assert message in refusal(configured(teacher))


COUNTED = "a whole number of 1 or more"
VALUES = [
    *(("transformer/config.json", "num_layers", value, COUNTED) for value in (None, "24", True, 2.0, -1, 0)),
    ("transformer/config.json", "patch_size", 0, COUNTED),
    ("transformer/config.json", "out_channels", "4", f"{COUNTED}, or null"),
    ("transformer/config.json", "pos_embed_max_size", None, COUNTED),
    ("transformer/config.json", "dual_attention_layers", None, "a list, which may be empty, of whole numbers of 0"),
    ("transformer/config.json", "_use_default_values", None, "a list of names"),
    *(("vae/config.json", "scaling_factor", value, "a finite number above 0") for value in (None, 0, "1", torch.nan)),
    ("vae/config.json", "shift_factor", torch.inf, "a finite number, or null"),
    ("vae/config.json", "block_out_channels", [], "a list of whole numbers of 1 or more"),
    ("vae/config.json", "block_out_channels", [16, None], "a list of whole numbers of 1 or more"),
    ("text_encoder/config.json", "num_hidden_layers", 0, COUNTED),
    ("text_encoder_2/config.json", "eos_token_id", None, "a whole number of 0 or more"),
    ("text_encoder_3/config.json", "num_heads", None, COUNTED),
    *(("tokenizer/tokenizer_config.json", "model_max_length", value, "a whole number of 3 or more, or null")
      for value in (0, -1, 10.0, True, "10")),
    ("tokenizer_3/tokenizer_config.json", "model_max_length", 0, "a whole number of 3 or more, or null"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key", "value", "words"), VALUES)
def test_a_value_that_no_network_can_have_is_named(
    teacher: Path, file: str, key: str, value: object, words: str
) -> None:
    edit(teacher / file, **{key: value})
    line = refusal(configured(teacher))
    assert line.startswith(f"{teacher / file} has {key}={json.dumps(value)}, which must be {words}")
    assert line.endswith(": correct it, or download it again")


def test_values_are_checked_by_whoever_opens_the_config(teacher: Path) -> None:
    edit(teacher / "transformer" / "config.json", patch_size=0)
    edit(teacher / "vae" / "config.json", scaling_factor=0)
    edit(teacher / "text_encoder" / "config.json", num_hidden_layers=0)
    opened: list[Callable[[], object]] = [
        lambda: LatentSpace.of(teacher),
        lambda: load_transformer(teacher, torch.float32),
        lambda: Vae(teacher, torch.device("cpu")),
        lambda: TextEncoders(teacher, torch.float32, torch.device("cpu"), 7),
    ]
    for open_it in opened:
        with pytest.raises(LaddError, match="config.json has .*, which must be"):
            open_it()


def tied_twice(all: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return all | {"encoder.embed_tokens.weight": all["shared.weight"].clone()}


def tied_elsewhere(all: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tied_twice(all).items() if name != "shared.weight"}


AS_WRITTEN: dict[str, Change] = {
    "tied twice": tensors(tied_twice, f"text_encoder_3/{TEXT}"),
    "tied by the other name": tensors(tied_elsewhere, f"text_encoder_3/{TEXT}"),
    "with a decoder": tensors(lambda all: all | {"decoder.final": torch.zeros(1)}, f"text_encoder_3/{TEXT}"),
    "with positions": tensors(
        lambda all: all | {"text_model.embeddings.position_ids": torch.arange(10)[None]}, f"text_encoder/{TEXT}"
    ),
    "padded with a letter": other("tokenizer_2/tokenizer_config.json", pad_token="!"),
}


@pytest.mark.parametrize("change", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_what_other_versions_and_models_write_is_accepted(teacher: Path, change: Change) -> None:
    """First CLIP and T5 say what they said; padding is the second CLIP's."""
    change(teacher)
    check_networks(configured(teacher))
    ours, theirs = (
        TextEncoders(folder, torch.float32, torch.device("cpu"), 7).encode(["a three"])
        for folder in (teacher, Path(TEACHER))
    )
    # Weights elsewhere in memory may add up in another order.
    torch.testing.assert_close(ours.pooled[:, :32], theirs.pooled[:, :32])
    torch.testing.assert_close(ours.context[:, 10:], theirs.context[:, 10:])


def test_more_t5_tokens_than_the_pipeline_takes_are_refused() -> None:
    with pytest.raises(LaddError, match=r"teacher\.max_t5_tokens"):
        configured(Path(TEACHER), "teacher.max_t5_tokens=513")


# SD3 as it is


SD3: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "num_layers": 24, "num_attention_heads": 24,
        "caption_projection_dim": 1536, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 16,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "text_encoder": {"model_type": "clip_text_model", "hidden_size": 768, "projection_dim": 768},
    "text_encoder_2": {"model_type": "clip_text_model", "hidden_size": 1280, "projection_dim": 1280},
    "text_encoder_3": {"model_type": "t5", "d_model": 4096},
    "tokenizer": {"model_max_length": 77},
}  # fmt: skip
MEDIUM = {
    "3": ({"pos_embed_max_size": 192}, 2.03e9),
    "3.5": (
        {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))},
        2.24e9,
    ),
}


@pytest.mark.parametrize(("changes", "parameters"), MEDIUM.values(), ids=MEDIUM)
def test_the_medium_models_have_their_shapes(tmp_path: Path, changes: dict[str, Any], parameters: float) -> None:
    for name, content in SD3.items():
        (tmp_path / name).mkdir()
        file = "tokenizer_config.json" if name == "tokenizer" else "config.json"
        (tmp_path / name / file).write_text(json.dumps(content | (changes if name == "transformer" else {})))
    check_shapes(tmp_path)
    net = meta_transformer(tmp_path)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=1e-2)
    assert LatentSpace.of(tmp_path).shape(Bucket(1024, 1024)) == (16, 128, 128)
    assert LatentSpace.of(tmp_path).grid(88, 184) == (44, 92)
