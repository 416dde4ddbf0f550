import json
import shutil

import pytest
import torch
from conftest import ALONE, tiny_config
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from ladd_dist.errors import LaddError
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.judges import check_judge, load_judge
from ladd_dist.preflight.jobs import JOBS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny random CLIP with the processor of the real one."""
    folder = tmp_path_factory.mktemp("clip-tiny")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=224, patch_size=56, projection_dim=12)
    text = CLIPTextConfig(**small, vocab_size=50, projection_dim=12)
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    ).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def test_the_clip_judge_embeds_pictures_of_any_shape(clip_folder):
    judge = load_judge(f"clip:{clip_folder}", CPU)
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features = judge.features(images)
    assert features.shape == (3, 12)
    assert judge.reads_prompt(images, ["a", "b", "c"]) is None
    again = judge.features(images.flip(0)).flip(0)
    torch.testing.assert_close(again, features)


@pytest.mark.parametrize(
    ("name", "words"), [("fid", "'digits' or 'clip:FOLDER'"), ("clip:/nowhere", "there is no such folder")]
)
def test_judges_that_are_not_there_are_named(name, words):
    with pytest.raises(LaddError, match=words):
        load_judge(name, CPU)


def test_the_judge_is_asked_for_before_anything_else_is_opened(tmp_path):
    """There is no checkpoint either."""
    config = tiny_config(tmp_path / "run", tmp_path / "data", "evaluation.judge=clip:/nowhere")
    for ask in (lambda: JOBS["evaluate"].check(config, ALONE), lambda: evaluate(config, ALONE, None, "ema")):
        with pytest.raises(LaddError, match="^evaluation.judge=clip:/nowhere: there is no such folder"):
            ask()


def edited(file, **changes):
    def change(folder):
        tree = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(tree | changes))

    return change


def vision(**changes):
    def change(folder):
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(tree | {"vision_config": tree["vision_config"] | changes}))

    return change


def tensors(change_all):
    def change(folder):
        file = folder / "model.safetensors"
        save_file(change_all(load_file(file)), file, metadata={"format": "pt"})

    return change


def filled(file, content):
    return lambda folder: (folder / file).write_bytes(content)


PROCESSOR, PROJECTION = "preprocessor_config.json", "visual_projection.weight"
FAULTS = {
    "a tensor less": (
        tensors(lambda all: {name: all[name] for name in all if name != PROJECTION}),
        f"has no tensor {PROJECTION}: its weights do not belong to its config.json",
    ),
    "a tensor more": (tensors(lambda all: all | {"quux": torch.zeros(1)}), "has a tensor quux, for which its config"),
    "a layer more": (vision(num_hidden_layers=2), "has no tensor vision_model.encoder.layers.1."),
    "no layers": (vision(num_hidden_layers=0), "config.json has num_hidden_layers=0, which must be a whole"),
    "no network": (vision(hidden_act="quux"), "config.json makes no CLIPVisionModelWithProjection ('quux'): "),
    "no config": (edited("config.json", vision_config=5), "config.json makes no CLIPVisionConfig ("),
    "another model": (edited("config.json", model_type="bert"), "holds a model of type bert: only clip_vision_model"),
    "quantized": (edited("config.json", quantization_config={"bits": 4}), "config.json has a quantization_config: "),
    "pointer": (filled("model.safetensors", b"version https://git-lfs"), "model.safetensors is a Git LFS pointer"),
    "cut": (filled("model.safetensors", b"\1"), "model.safetensors is not a whole safetensors file ("),
    "pickled": (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "must be safete"),
    "no object": (filled(PROCESSOR, b"[]"), f"{PROCESSOR} holds no JSON object: download it again"),
    "no processor": (lambda folder: (folder / PROCESSOR).unlink(), f"{PROCESSOR} cannot be read (No such file"),
    "no channels": (edited(PROCESSOR, image_mean=["x"]), f"{PROCESSOR} prepares no pictures (mean must have 3 elem"),
    "no number": (
        edited(PROCESSOR, image_mean=[torch.nan] * 3), "but config.json wants finite numbers of (1, 3, 224, 224)",
    ),
    "not square": (
        edited(PROCESSOR, do_center_crop=False), f"{PROCESSOR} makes (1, 3, 224, 448) of a picture, but config.json",
    ),
    "another size": (
        edited(PROCESSOR, crop_size={"height": 112, "width": 112}),
        f"{PROCESSOR} makes (1, 3, 112, 112) of a picture, but config.json wants finite numbers of ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_clip_that_is_damaged_or_of_two_models_is_named_before_it_is_loaded(clip_folder, tmp_path, change, message):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    change(folder)
    for ask in (check_judge, lambda name: load_judge(name, CPU)):
        with pytest.raises(LaddError) as refused:
            ask(f"clip:{folder}")
        (line,) = str(refused.value).splitlines()
        assert line.startswith(str(folder)) and message in line


AS_WRITTEN = {
    "vision tower alone": tensors(lambda all: {name: all[name] for name in all if name.startswith("vis")}),
    "with positions": tensors(
        lambda all: all | {"vision_model.embeddings.position_ids": torch.arange(17)[None]},
    ),
}


@pytest.mark.parametrize("change", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_what_other_versions_of_clip_write_is_the_same_judge(clip_folder, tmp_path, change):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    change(folder)
    check_judge(f"clip:{folder}")
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    ours, theirs = (load_judge(f"clip:{path}", CPU).features(images) for path in (folder, clip_folder))
    assert torch.equal(ours, theirs)
