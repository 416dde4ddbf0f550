import ast
import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.model_card import model_card, teacher_name
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry

CONFIG = tiny_config(Path("run"), Path("data"), "teacher.max_t5_tokens=77")
_FENCE = re.compile(r"^```python\n(.*?)```", re.DOTALL | re.MULTILINE)
_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)


@given(prompt=st.text(), name=_NAMES)
@example(prompt="a \"quoted' sign\n```\nnext", name="it's `mine`")
@example(prompt="{braces} {0} \\", name="{x}")
@example(prompt="cut here\u2028\x85\r and \ud800", name='"""')
def test_the_code_is_python_for_every_prompt(prompt: str, name: str) -> None:
    card = model_card(CONFIG, name, 5, "ema", Changed(torch.float32), PromptEntry(0, prompt, Bucket(32, 64)))
    code, *others = _FENCE.findall(card)
    for other in others:
        ast.parse(other)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    made, drawn = (
        next(c for c in calls if ast.unparse(c.func) == f)
        for f in ("StableDiffusion3Pipeline.from_pretrained", "pipe")
    )
    assert ast.literal_eval(made.args[0]) == name
    assert {k.arg: ast.literal_eval(k.value) for k in made.keywords} == {"trust_remote_code": True}
    assert ast.literal_eval(drawn.args[0]) == prompt
    settings = {k.arg: ast.literal_eval(k.value) for k in drawn.keywords}
    assert settings == {
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "height": 32,
        "width": 64,
        "max_sequence_length": 77,
    }


def test_servers_find_the_students_own_defaults_in_the_cards_front_matter() -> None:
    data = ModelCard(
        model_card(CONFIG, "student", 5, "ema", Changed(torch.float32), PromptEntry(0, "a one", Bucket(32, 64)))
    ).data
    assert data.inference == {"parameters": {"num_inference_steps": 4, "guidance_scale": 1.0}}
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")


def test_a_teacher_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sd3.5-large"
    (folder / "vae").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (".", "./", "vae/..", str(folder), "../sd3.5-large/", "~/sd3.5-large"):
        assert teacher_name(path) == "sd3.5-large"


def test_a_snapshot_of_the_hub_has_its_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--stabilityai--stable-diffusion-3-medium" / "snapshots" / "4ab6c3331a7591f1"
    snapshot.mkdir(parents=True)
    (tmp_path / "teacher").symlink_to(snapshot)
    monkeypatch.chdir(snapshot)
    for path in (".", str(snapshot), str(tmp_path / "teacher")):
        assert teacher_name(path) == "stabilityai/stable-diffusion-3-medium"
    assert teacher_name("/cache/models--gpt2/snapshots/00ff") == "gpt2"
