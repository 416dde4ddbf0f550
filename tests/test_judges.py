import json
import re
import shutil

import pytest
import torch
from conftest import ALONE, TEACHER, tiny_config
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ladd_dist.drawing.scorers import score, scorer_of
from ladd_dist.errors import LaddError, MissingWeights
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.identity import of_baselines
from ladd_dist.evaluation.instruments import Instruments
from ladd_dist.evaluation.judges import check_judge, load_judge
from ladd_dist.preflight.jobs import JOBS

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny random CLIP with the processor of the real one, and the embedded teacher's tokenizer."""
    folder = tmp_path_factory.mktemp("clip-tiny")
    tokenizer = CLIPTokenizer.from_pretrained(f"{TEACHER}/tokenizer")
    vision = CLIPVisionConfig(**SMALL, image_size=224, patch_size=56, projection_dim=12)
    words, end = len(tokenizer), tokenizer.eos_token_id
    text = CLIPTextConfig(
        **SMALL, vocab_size=words, projection_dim=12, eos_token_id=end, pad_token_id=end, max_position_embeddings=16
    )
    tokenizer.save_pretrained(folder)
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


def test_the_clip_score_is_that_of_transformers(clip_folder):
    """Of a whole CLIP as it is meant to be called; a long prompt is cut."""
    prompts = [*["one", "two", "three", "four", "five", "six", "seven"], "seven " * 100]
    images = torch.rand(len(prompts), 3, 64, 96, generator=torch.Generator().manual_seed(0))
    found = score("clip", scorer_of(f"clip:{clip_folder}"), prompts, images)
    tokenizer, clip = CLIPTokenizer.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    text = tokenizer(prompts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    processed = CLIPImageProcessor.from_pretrained(clip_folder)(
        images=list(images), do_rescale=False, return_tensors="pt"
    )
    with torch.no_grad():
        together = clip(**text, **processed).logits_per_image.diagonal() / clip.logit_scale.exp()
    assert (together > 0).any() and (together < 0).any()
    assert found.tolist() == pytest.approx((100 * together.clamp(min=0)).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "words"), [("fid", "'digits', 'teacher' or 'clip:FOLDER'"), ("clip:/nowhere", "there is no such folder")]
)
def test_judges_that_are_not_there_are_named(name, words):
    with pytest.raises(LaddError, match=words):
        load_judge(name, CPU)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("judge=fid", "evaluation.judge=fid is unknown"),
        ("scorers=[beauty]", "scorer beauty is unknown: use stroke, clip:FOLDER or MODULE:FUNCTION"),
        ("reference=/nowhere", "evaluation.reference=/nowhere: there is no such folder"),
    ],
)
def test_what_is_unknown_is_said_before_anything_is_opened(tmp_path, setting, words):
    """There is no checkpoint either."""
    config = tiny_config(tmp_path / "run", tmp_path / "data", f"evaluation.{setting}")
    for ask in (lambda: JOBS["evaluate"].check(config, ALONE), lambda: evaluate(config, ALONE, None, "ema")):
        with pytest.raises(LaddError, match=f"^{re.escape(words)}"):
            ask()


def test_a_judge_without_weights_is_said_and_the_evaluation_goes_on_to_its_checkpoint(tmp_path, caplog):
    config = tiny_config(tmp_path / "run", tmp_path / "data", "evaluation.judge=clip:/nowhere")
    JOBS["evaluate"].check(config, ALONE)
    with pytest.raises(LaddError, match="checkpoint"):
        evaluate(config, ALONE, None, "ema")
    said = caplog.text
    assert "without the judge, in the teacher's own features: clip:/nowhere: there is no such folder" in said
    assert "hf download openai/clip-vit-large-patch14 --local-dir /nowhere" in said


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
    torch.testing.assert_close(ours, theirs)  # weights elsewhere in memory may add up in another order


WORDS = "text_model.embeddings.token_embedding.weight"


def few_tokens(folder):
    text = {"vocab_size": 5, "projection_dim": 12, "max_position_embeddings": 16, **SMALL}
    edited("config.json", text_config=text)(folder)
    tensors(lambda all: all | {WORDS: all[WORDS][:5].clone()})(folder)


CLIP_FAULTS = {
    "no folder": (shutil.rmtree, "there is no such folder: put a transformers CLIP there, such as by hf download"),
    "no tokenizer": (lambda folder: (folder / "merges.txt").unlink(), "its tokenizer cannot be loaded"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "one tower": (AS_WRITTEN["vision tower alone"], "has no tensor"),
    "few tokens": (few_tokens, "but it knows 5, from 0 on"),
}


@pytest.mark.parametrize(("change", "message"), CLIP_FAULTS.values(), ids=CLIP_FAULTS)
def test_a_clip_that_cannot_score_is_named_before_it_is_loaded(clip_folder, tmp_path, change, message):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    change(folder)
    with pytest.raises(MissingWeights) as refused:
        scorer_of(f"clip:{folder}")
    (line,) = str(refused.value).splitlines()
    assert str(folder) in line and message in line


def test_a_clip_whose_weights_have_changed_looks_anew(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    found = []
    for change in (0.0, 0.0, 1.0):
        weights = load_file(folder / "model.safetensors")
        weights["visual_projection.weight"] += change
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        for key in ("judge", "scorers"):
            value = f"clip:{folder}" if key == "judge" else f"[clip:{folder}]"
            config = tiny_config(tmp_path, tmp_path, f"evaluation.{key}={value}")
            found.append(of_baselines(config, ALONE, [], [], Instruments.load(config, ALONE), features=True))
    assert found[:2] == found[2:4] and len(set(found)) == 4
