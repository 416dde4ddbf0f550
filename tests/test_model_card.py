"""What the card of an export says, and that it can be read by those who look at it."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from checkpoints import run_state, trained_at
from conftest import tiny_config
from diffusers import StableDiffusion3Pipeline
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from ladd_dist.checkpoints.changed import Changed
from ladd_dist.checkpoints.export import export
from ladd_dist.checkpoints.model_card import model_card, teacher_name
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.mds import Manifest, Provenance
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.models.licence import Licence
from ladd_dist.models.lora import Lora, Scaled

CONFIG = tiny_config(Path("run"), Path("data"), "teacher.max_t5_tokens=77")
_FENCE = re.compile(r"^```python\n(.*?)```", re.DOTALL | re.MULTILINE)
_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)


def card_of(
    config: Config = CONFIG,
    name: str = "student",
    prompt: str = "a one",
    dataset: Manifest | None = None,
    loras: Sequence[Scaled] = (),
) -> str:
    state, example = run_state(5).model_copy(update={"dataset": dataset}), PromptEntry(0, prompt, Bucket(32, 64))
    return model_card(
        config, name, state, "ema", Changed(torch.float32), example, loras, Licence.of(config.teacher.path), None
    )


@given(prompt=st.text(), name=_NAMES)
@example(prompt="a \"quoted' sign\n```\nnext", name="it's `mine`")
@example(prompt="{braces} {0} \\", name="{x}")
@example(prompt="cut here\u2028\x85\r and \ud800", name='"""')
def test_the_code_is_python_for_every_prompt(prompt: str, name: str) -> None:
    card = card_of(name=name, prompt=prompt)
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
    settings = {k.arg: ast.literal_eval(k.value) for k in drawn.keywords if k.arg != "generator"}
    assert settings == {
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "height": 32,
        "width": 64,
        "max_sequence_length": 77,
    }


@pytest.mark.parametrize("tokens", [77, 256])
def test_what_is_not_the_pipelines_default_is_in_the_front_matter_for_servers_and_said_in_bold(tokens: int) -> None:
    card = card_of(tiny_config(Path("run"), Path("data"), f"teacher.max_t5_tokens={tokens}"))
    default = signature(StableDiffusion3Pipeline.__call__).parameters["max_sequence_length"].default
    length = {} if tokens == default else {"max_sequence_length": tokens}
    bold = ["`guidance_scale=1.0`", *(f"`{key}={value}`" for key, value in length.items())]
    assert re.findall(r"^\*\*Always pass (.*?)\.\*\*", card, re.MULTILINE) == bold
    data = ModelCard(card).data
    assert data.inference == {"parameters": {"num_inference_steps": 4, "guidance_scale": 1.0, **length}}
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


# Of what it was made


MADE = Provenance(
    teacher="98e551a89f64e4ce",
    precision="bf16",
    prompts="f7a09e5fc082c493",
    seed=3,
    guidance=4.5,
    steps=28,
    scheduler={},
    buckets=["32x32", "32x64"],
    images_per_prompt=2,
    part_samples=512,
    latent_channels=4,
    max_t5_tokens=77,
)
COUNTS = {"32x32": 1200, "32x64": 30}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            None,
            "1,230 synthetic latents (1,200 of 32x32, 30 of 32x64): `teacher` drew them in 28 steps at guidance 4.5",
        ),
        (
            "table:a.csv",
            "1,230 pairs of given pictures (1,200 of 32x32, 30 of 32x64): they are from the table `a.csv`",
        ),
        ("rank:stroke", "1,230 pairs of the teacher's own pictures, ranked by `stroke` (1,200 of 32x32"),
    ],
)
def test_the_card_says_what_the_run_was_trained_on(pairs: str | None, said: str) -> None:
    card = card_of(dataset=Manifest(replace(MADE, pairs=pairs), COUNTS, {}))
    assert f"\n{said}" in card and "f7a09e5fc082c493" in card
    assert (pairs == "table:a.csv") == ("guidance 4.5" not in card)


def test_the_card_of_an_older_checkpoint_says_that_its_data_are_unknown() -> None:
    assert "\nThe checkpoint, an older one, does not say.\n" in card_of()


def empty_lora(path: str) -> Lora:
    return Lora(path, base=None, kept=None, downs={}, ups={}, scales={})


def test_adapters_that_are_merged_are_named_by_no_path_of_the_machine() -> None:
    paths = [("/home/me/runs/dpo/checkpoints/step-00000400", 1.0), ("/home/me/loras/ink.safetensors", 0.5)]
    paths.append(("/home/me/models--org--style/snapshots/4ab6/lora.safetensors", -2.0))
    loras = [(empty_lora(path), scale) for path, scale in paths]
    names = "`dpo/step-00000400 x 1`, `loras/ink.safetensors x 0.5`, `org/style/lora.safetensors x -2`"
    said = f"\n\nMerged into it are adapters, whose own data and licences apply, too: {names}.\n\n**Always"
    assert said in card_of(loras=loras) and "/home" not in card_of(loras=loras) and "Merged" not in card_of()


def test_a_start_that_is_not_the_teacher_is_named() -> None:
    for override, said in ((), ""), (("student.path=/home/me/small",), " from `small`"):
        assert f"with ladd_dist{said},\n" in card_of(tiny_config(Path("run"), Path("data"), *override))


def test_what_a_run_is_trained_on_is_in_its_state() -> None:
    state = run_state(5).model_copy(update={"dataset": Manifest(MADE, COUNTS, {"torch": "2"})})
    assert type(state).model_validate_json(state.model_dump_json(), strict=True) == state


# The licence


LICENCE = {"license": "other", "license_name": 'community: "x"', "license_link": "LICENSE.md"}


def with_readme(folder: Path, content: str, *files: str) -> Config:
    """A teacher's folder with a README.md and other files at its top."""
    folder.mkdir()
    for part in Path(CONFIG.teacher.path).resolve().iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "README.md").write_text(content)
    for file in files:
        (folder / file).write_text(f"this is {file}")
    return tiny_config(Path("run"), Path("data"), f"teacher.path={folder}")


def test_the_teachers_licence_goes_with_its_student(tmp_path: Path) -> None:
    head = {**LICENCE, "tags": ["a"], "extra_gated_prompt": "no"}
    with_readme(tmp_path / "sd3", f"---\n{json.dumps(head)}\n---\n# SD3\n", "LICENSE.md", "NOTICE")
    config, checkpoint = trained_at(tmp_path / "run", tmp_path / "data", f"teacher.path={tmp_path / 'sd3'}")
    example = PromptEntry(0, "a one", Bucket(32, 64))
    loras = [(empty_lora("ink.safetensors"), 0.5)]
    folder = export(config, checkpoint, tmp_path / "out", "ema", torch.float32, example, loras)
    card = (folder / "README.md").read_text()
    assert "/ink.safetensors x 0.5`" in card
    data = ModelCard(card).data.to_dict()
    assert {key: data.get(key) for key in LICENCE} == LICENCE and not {"tags", "extra_gated_prompt"} & set(data)
    called = 'derived from `sd3`, whose licence, `community: "x"`, applies to them. Its text is beside this file'
    assert f"{called}: [LICENSE.md](LICENSE.md), [NOTICE](NOTICE).\n" in card
    assert [(folder / name).read_text() for name in ("LICENSE.md", "NOTICE")] == [
        "this is LICENSE.md",
        "this is NOTICE",
    ]


@pytest.mark.parametrize(
    "readme", ["# SD3\n", "---\nlicense: [a\n---\n", "---\nlicense: 3\n---\n", "---\nyes\n---\n"]
)
def test_a_teacher_that_names_no_licence_is_said_to(tmp_path: Path, readme: str) -> None:
    card = card_of(with_readme(tmp_path / "sd3", readme))
    assert "derived from `sd3`, whose folder names no licence: find out what its publisher" in card
    assert "license" not in ModelCard(card).data.to_dict()


def test_the_hub_links_a_student_to_the_teacher_that_it_knows(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--sd3" / "snapshots" / "4ab6"
    snapshot.parent.mkdir(parents=True)
    assert ModelCard(card_of(with_readme(snapshot, ""))).data.base_model == "org/sd3"
    assert ModelCard(card_of()).data.base_model is None
