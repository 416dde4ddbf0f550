"""Prompt files as people have them: marks, line ends, half characters, endings."""

import json
import re
from pathlib import Path

import pytest
from conftest import BUCKETS
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_dist.data.prompts import read_prompts
from ladd_dist.errors import LaddError

LINE_LIKE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Where `str.splitlines` cuts, and no editor does."""


def prompts_of(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [request.prompt for request in read_prompts(path, BUCKETS)]


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(LaddError) as refused:
        prompts_of(path, data)
    (line,) = str(refused.value).splitlines()
    return line


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_marks_and_line_ends_are_no_part_of_a_prompt(tmp_path: Path, mark: str, end: str) -> None:
    rows = [f"{mark}one", "", f"{mark}two"]
    assert prompts_of(tmp_path / "p.txt", end.join(rows).encode()) == ["one", "two"]
    rows = [f'{mark}{{"prompt": "one"}}', "", f'{mark}{{"prompt": "two"}}', ""]
    assert prompts_of(tmp_path / "p.jsonl", end.join(rows).encode()) == ["one", "two"]


@pytest.mark.parametrize("character", LINE_LIKE, ids=ascii)
def test_only_line_ends_end_lines(tmp_path: Path, character: str) -> None:
    prompt = f"a{character}b"
    assert prompts_of(tmp_path / "p.txt", f"{prompt}\nc\n".encode()) == [prompt, "c"]
    if character not in "\x0b\x0c\x1c\x1d\x1e":  # which JSON escapes
        assert prompts_of(tmp_path / "p.jsonl", f'{{"prompt": "{prompt}"}}\n'.encode()) == [prompt]


_CHARACTER = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_PROMPT = st.text(_CHARACTER) | st.text(st.sampled_from([*LINE_LIKE, "a", " ", "\ufeff", '"', "\n", "\r"]))
_LINE = _PROMPT.map(lambda text: re.sub("[\r\n]|^\ufeff+", "", text).strip().lstrip("\ufeff")).filter(str.strip)
_END, _MARK = st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["", "\ufeff"])


@settings(deadline=None)
@given(st.lists(_LINE, min_size=1), _END, _MARK)
def test_any_text_prompts_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], end: str, mark: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.txt"
    assert prompts_of(path, (mark + end.join(prompts)).encode()) == [prompt.strip() for prompt in prompts]


@settings(deadline=None)
@given(st.lists(_PROMPT, min_size=1), _END, _MARK, st.booleans())
def test_any_json_prompts_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], end: str, mark: str, escaped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=escaped) for prompt in prompts]
    assert prompts_of(path, (mark + end.join(rows)).encode()) == prompts


@pytest.mark.parametrize("name", ["p.TXT", "p.Txt"])
def test_an_ending_may_be_of_any_case(tmp_path: Path, name: str) -> None:
    assert prompts_of(tmp_path / name, b"one\n") == ["one"]
    assert prompts_of(tmp_path / "p.JSONL", b'{"prompt": "one"}\n') == ["one"]


@pytest.mark.parametrize("name", ["p.csv", "p", "p.json", "p.txt.gz", ".txt"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    line = refusal(tmp_path / name, b"one\n")
    assert f"prompt file {tmp_path / name} ends in '{Path(name).suffix}'" in line
    assert ".txt if it holds one prompt per line, or .jsonl if" in line


_LINES = [
    (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
    (b'{"prompt": "\\udc00 a"}', "half of a surrogate pair"),
    (b'{"prompt": "a\\u0000b"}', "NUL"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
    (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' is given twice: keep one"),
    (b'{"prompt": "a", "bucket": "8x8", "bucket": "8x8"}', "key 'bucket' is given twice: keep one"),
    (b'{"prompt": "a", "buckte": "8x8"}', "unknown key 'buckte': did you mean 'bucket'?"),
    (b'{"promt": "a"}', "unknown key 'promt': did you mean 'prompt'?"),
    (b'{"bucket": "8x8"}', "expected"),
    (b'{"prompt": "a", "x": 1}', "unknown key 'x': known keys here are prompt, bucket"),
    (b'{"prompt": "a", "a\\nb": 1}', r"unknown key 'a\nb': known keys"),
    (b'{"prompt": "a", "bucket": "8\\n8"}', r"bucket '8\n8' is not one of the configured"),
    (b'{"prompt": NaN}', "'prompt' and 'bucket' must be text"),
    (b'{"prompt": ["a"]}', "'prompt' and 'bucket' must be text"),
    (b'{"prompt": null}', "'prompt' and 'bucket' must be text"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "expected"),
    (b'"prompt"', "expected"),
    (b"NaN", "expected"),
    (b"[" * 100_000, "expected"),
]


@pytest.mark.parametrize(("row", "message"), _LINES, ids=[row.decode("latin-1")[:25] for row, _ in _LINES])
def test_a_json_line_that_cannot_be_used_is_named(tmp_path: Path, row: bytes, message: str) -> None:
    line = refusal(tmp_path / "p.jsonl", b'{"prompt": "fine"}\r\n\r\n' + row + b"\r\n")
    assert line.startswith(f"{tmp_path / 'p.jsonl'}:3: ") and message in line


@pytest.mark.parametrize(
    ("data", "number", "message"),
    [
        ("one\ntwo\n".encode("utf-16"), 1, "not UTF-8 text"),
        ("one\ntwo\n".encode("utf-16-le"), 1, "NUL"),
        ("fine\nschön\n".encode("latin-1"), 2, "not UTF-8 text"),
        (b"fine\n\xed\xa0\x80\n", 2, "not UTF-8 text"),
    ],
    ids=["UTF-16", "UTF-16 unmarked", "Latin-1", "surrogate"],
)
def test_a_text_line_that_cannot_be_used_is_named(tmp_path: Path, data: bytes, number: int, message: str) -> None:
    line = refusal(tmp_path / "p.txt", data)
    assert line.startswith(f"{tmp_path / 'p.txt'}:{number}: ") and message in line


@pytest.mark.parametrize("data", [b"", b"\n \r\n", "\ufeff".encode()], ids=["empty", "blank", "a mark alone"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    assert f"prompt file {tmp_path / name} holds no prompts" in refusal(tmp_path / name, data)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(LaddError, match="cannot be read"):
        read_prompts(tmp_path, BUCKETS)
