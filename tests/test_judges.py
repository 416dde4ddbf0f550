import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from ladd_dist.errors import LaddError
from ladd_dist.evaluation.distances import frechet_distance
from ladd_dist.evaluation.judges import load_judge

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
    ("name", "words"), [("fid", "'digits' or 'clip:FOLDER'"), ("clip:/nowhere", "cannot be loaded")]
)
def test_judges_that_are_not_there_are_named(name, words):
    with pytest.raises(LaddError, match=words):
        load_judge(name, CPU)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)) * [1, 2, 3] + [1, 0, -1]
    got = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(2 + 0 + 1 + 4, rel=0.05)  # |mu|^2 + sum (sigma_a - sigma_b)^2


@given(st.integers(0, 100), st.floats(-5, 5))
def test_frechet_distance_is_zero_to_itself_and_symmetric(seed, shift):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 20, 4, generator=g, dtype=torch.float64).unbind()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-5)
    assert frechet_distance(a, a + shift) == pytest.approx(4 * shift**2, abs=1e-5)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="two or more"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
