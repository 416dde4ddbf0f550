"""Prompts with more tokens than text encoders take: counted in one line, and not printed one by one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ALONE, TEACHER, TINY, tiny_config
from launch import launch

from ladd_dist.drawing import given, ranking
from ladd_dist.drawing.pictures import save_png
from ladd_dist.drawing.pipeline import tell_cut
from ladd_dist.errors import LaddError
from ladd_dist.models.sd3.text import cut

PROMPTS = ["a three", "a seven next to a two", "a one next to a two next to a three"]
"""With 4, 8 and 12 tokens of CLIP's, beginning and end among them, and of a T5 3, 7 and 11."""


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The embedded teacher with a T5 that makes a token of each word."""
    folder = Path(shutil.copytree(TEACHER, tmp_path / "teacher"))
    file = folder / "tokenizer_3" / "tokenizer.json"
    rules = json.loads(file.read_text()) | {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    file.write_text(json.dumps(rules))
    return folder


def test_prompts_are_held_against_the_lengths_of_clip_and_t5(teacher: Path) -> None:
    assert cut(teacher, 7, PROMPTS) == {"CLIP's 10 tokens": 1, "T5's 7 tokens": 1}
    assert cut(teacher, 6, PROMPTS) == {"CLIP's 10 tokens": 1, "T5's 6 tokens": 2}
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(teacher / part)
    assert cut(teacher, 6, PROMPTS) == {"CLIP's 10 tokens": 1}


def test_each_prompt_counts_once_and_where_none_is_cut_nothing_is_said(
    tmp_path: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = tiny_config(tmp_path / "run", tmp_path / "data", f"teacher.path={teacher}", "teacher.max_t5_tokens=6")
    tell_cut(config, PROMPTS[:1], ALONE)
    assert not caplog.records
    tell_cut(config, PROMPTS * 2, ALONE)
    assert [record.message for record in caplog.records] == [
        "too long and cut, of 3 prompts: 1 at CLIP's 10 tokens, 2 at T5's 6 tokens"
    ]


def test_two_ranks_of_a_launcher_say_it_once_and_libraries_do_not(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "\n".join([*PROMPTS, *(f"{PROMPTS[2]} next to a {digit}" for digit in ("four", "five", "six"))])
    )
    settings = [f"synthesis.prompts={prompts}", f"data.path={tmp_path / 'data'}", "synthesis.steps=1"]
    made = launch(["synthesize.py", "--config", str(TINY), *settings, "device=cpu"], ranks=2)
    assert made.returncode == 0, made.stderr
    said = made.stdout + made.stderr
    assert said.count("too long and cut, of 6 prompts: 4 at CLIP's 10 tokens") == 1
    assert "truncated" not in said and "Token indices" not in said


def test_jobs_of_pairs_and_pictures_say_it_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end before they load anything."""
    caplog.set_level("INFO")
    for owner, name in ((ranking, "Teacher"), (given, "Pipeline")):
        monkeypatch.setattr(owner, name, _ends)
    prompts, table = tmp_path / "prompts.txt", tmp_path / "table.jsonl"
    prompts.write_text("\n".join(PROMPTS))
    save_png(torch.rand(3, 32, 32), tmp_path / "a.png")
    rows = [{"prompt": prompt, "picture": "a.png"} for prompt in PROMPTS]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(tmp_path / "run", tmp_path / "data", f"synthesis.prompts={prompts}")
    for job in (
        lambda: ranking.rank_pairs(config, "stroke", 2, ALONE),
        lambda: given.table_pictures(config, table, ALONE),
    ):
        caplog.clear()
        with pytest.raises(LaddError, match="ended"):
            job()
        assert "too long and cut, of 3 prompts: 1 at CLIP's 10 tokens" in caplog.text


def _ends(*_: object) -> None:
    raise LaddError("ended")
