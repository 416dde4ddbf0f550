"""The blind page: which pictures are compared, on which sides, and what its bytes give away."""

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from compared import make_page, prefers, run_launcher, save_answers, write_set
from documented import documented
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ladd_dist.data.prompts import read_prompts
from ladd_dist.human.page import PAGE
from ladd_dist.human.sets import Picture, PictureSet
from ladd_dist.human.trials import KEY, QUESTIONS, pairs_of, plan, read_key, unmatched

PROMPTS = Path("ladd_dist/human/prompts.jsonl")
REQUESTS = [("a red fox", "32x32", 0), ("a </script><b>blue</b> owl", "288x320", 1), ("two kites", "32x64", 2)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two models. Read only."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        name: write_set(folder / f"{name}-folder", red, REQUESTS) for name, red in (("Alphaxl", 0.2), ("Betaxl", 0.8))
    }


def given_sets(sets: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in sets.items()]


def data_of(page: bytes) -> dict:
    (text,) = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


# Prompts


def test_the_prompts_are_128_of_every_kind() -> None:
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    entries = read_prompts(PROMPTS, ["1024x1024"])
    assert [entry.prompt for entry in entries] == [row["prompt"] for row in rows]
    assert len({entry.prompt.lower() for entry in entries}) == 128
    assert len({row["category"] for row in rows}) == 12 and len({row["challenge"] for row in rows}) == 11


# Trials


def picture_set(name: str, requests: dict[str, str | None]) -> PictureSet:
    return PictureSet(name, name, {r: Picture(Path(f"{r}.png"), prompt, None) for r, prompt in requests.items()})


REQUESTED = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.sampled_from([None, "p", "q"]))


@given(st.lists(REQUESTED, min_size=2, max_size=4), st.integers(0, 9), st.booleans())
def test_every_common_request_is_asked_once_of_every_pair(drawn: list, seed: int, baseline: bool) -> None:
    sets = [picture_set(f"m{n}", {"x": "a prompt", **requests}) for n, requests in enumerate(drawn)]
    pairs = pairs_of(sets, "m1" if baseline else None)
    assert len(pairs) == (len(sets) - 1 if baseline else len(sets) * (len(sets) - 1) // 2)
    key = plan(sets, pairs, str(seed))
    assert key == plan(sets, pairs, str(seed)) and len({trial.id for trial in key.trials}) == len(key.trials)
    assert [t.question for t in key.trials] == sorted((t.question for t in key.trials), key=QUESTIONS.index)
    for model, rival in pairs:
        common = model.pictures.keys() & rival.pictures.keys()
        assert unmatched(model, rival) == (len(model.pictures) - len(common), len(rival.pictures) - len(common))
        for question in QUESTIONS:
            mine = [t for t in key.trials if t.question == question and {t.left, t.right} == {model.name, rival.name}]
            known = {r for r in common if model.pictures[r].prompt or rival.pictures[r].prompt}
            asked = Counter(trial.request for trial in mine)
            assert asked == Counter(common if question == "quality" else known)
            lefts = Counter(trial.left for trial in mine)
            assert abs(lefts[model.name] - lefts[rival.name]) <= 1, "sides are balanced"


def test_sides_and_order_are_of_each_pages_own(sets: dict[str, Path]) -> None:
    both = [picture_set(name, {str(n): "p" for n in range(40)}) for name in sets]
    keys = [plan(both, pairs_of(both, None)) for _ in range(2)]
    sides = [{(t.question, t.request): t.left for t in key.trials} for key in keys]
    assert sides[0] != sides[1] and keys[0].page != keys[1].page
    for key, left in zip(keys, sides, strict=True):
        orders = [[t.request for t in key.trials if t.question == question] for question in QUESTIONS]
        assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
        assert any(left["quality", request] != left["alignment", request] for request in orders[0])
    assert not {t.id for t in keys[0].trials} & {t.id for t in keys[1].trials}
    pictures = [{key.picture(m, t.request) for t in key.trials for m in (t.left, t.right)} for key in keys]
    assert len(pictures[0]) == 80 and not pictures[0] & pictures[1]


def test_pairs_of_models_are_asked_in_no_order() -> None:
    three = [picture_set(name, {str(n): "p" for n in range(20)}) for name in "abc"]
    first = plan(three, pairs_of(three, None), "a secret").trials[:20]
    assert len({frozenset((trial.left, trial.right)) for trial in first}) == 3


# The page


def test_the_page_does_not_say_whose_pictures_they_are(sets: dict[str, Path], tmp_path: Path) -> None:
    key = make_page(tmp_path / "out", *given_sets(sets))
    page = (tmp_path / "out" / PAGE).read_bytes()
    told = [
        *sets,
        *(str(path) for path in sets.values()),
        key.secret,
        "32x32",
        "288x320",
        "-folder",
        "network",
        ".png",
    ]
    for word in told:
        assert word.lower().encode() not in page.lower(), word
    for trial in data_of(page)["trials"]:
        assert set(trial) == {"id", "question", "left", "right", "prompt"}
        assert (trial["prompt"] is None) == (trial["question"] == "quality"), "quality is judged without the prompt"
    pictures = re.findall(rb'<script type="text/plain" id="(\w+)">data:image/(\w+);base64,(.*?)</script>', page)
    names = [name for name, _, _ in pictures]
    assert len(names) == 6 and names == sorted(names), "not in the order of sets"
    for name, kind, text in pictures:
        data = base64.b64decode(text)
        request, model = next(
            (t.request, m)
            for t in key.trials
            for m in (t.left, t.right)
            if key.picture(m, t.request) == name.decode()
        )
        with Image.open(io.BytesIO(data)) as shown:
            info, pixels = set(shown.info), np.asarray(shown.convert("RGB")).astype(int)
        assert kind == (b"webp" if "288x320" in request else b"png") and not info - {"loop", "background"}
        (file,) = (path for path in sets[model].iterdir() if request.split(", ")[1] in path.name)
        with Image.open(file) as original:
            difference = abs(pixels - np.asarray(original).astype(int))
        assert difference.max() == 0 if kind == b"png" else difference[..., 0].mean() < 40, "each is its model's"


def test_text_of_users_ends_no_script(sets: dict[str, Path], tmp_path: Path) -> None:
    key = make_page(tmp_path / "out", *given_sets(sets))
    page = (tmp_path / "out" / PAGE).read_bytes()
    assert b"</script><b>" not in page
    shown = {trial["prompt"] for trial in data_of(page)["trials"]} - {None}
    assert shown == {prompt for prompt, _, _ in REQUESTS}
    assert data_of(page)["page"] == key.page


def test_colour_profiles_and_other_notes_of_files_are_left_out(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("parameters", "made by Betaxl")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        profile = name.encode() * 200
        picture = Image.new("RGB", (40, 40), "red")
        picture.save(tmp_path / name / "1.png", pnginfo=notes, icc_profile=profile, exif=picture.getexif())
        picture.resize((400, 400)).save(tmp_path / name / "2.png", pnginfo=notes, icc_profile=profile)
    make_page(tmp_path / "out", *(f"{name}={tmp_path / name}" for name in ("a", "b")))
    page = (tmp_path / "out" / PAGE).read_text()
    addresses = re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)
    contents = [base64.b64decode(address) for address in addresses]
    assert len(contents) == 4 and contents[0] in contents[1:], "the same pixels are the same bytes"
    assert not any(b"Betaxl" in content or b"ICCP" in content or b"iCCP" in content for content in contents)


def test_the_documented_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = write_set(tmp_path / "samples", 0.2, REQUESTS)
    write_set(samples, 0.8, REQUESTS, suffix="-teacher")

    def run(launcher: str, word: str) -> None:
        words = documented("docs/human.md", launcher, word).words[2:]
        run_launcher(Path(launcher).name, *(word.replace("runs/human", str(tmp_path)) for word in words))

    run("launchers/human/page.py", "student=runs/human/samples/*[0-9].png")
    key = read_key(tmp_path / "page" / KEY)
    save_answers(tmp_path / "answers-ann.json", key, "Ann", prefers("student"))
    save_answers(tmp_path / "answers-ben.json", key, "Ben", prefers("teacher"))
    run("launchers/human/score.py", "runs/human/page/key.json")
    assert "quality    student over teacher" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "scores").iterdir()} >= {"scores.json", "win_rates.png"}


# Matching


def test_without_notes_files_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "noted", 0.2, REQUESTS)
    Image.new("RGB", (8, 8)).save(tmp_path / "noted" / "sheet.png")  # as sample.py leaves one
    (tmp_path / "plain").mkdir()
    for name in ("32x32-00.jpg", "32x64-02.webp", "other.png"):
        Image.new("RGB", (64, 32)).save(tmp_path / "plain" / name)
    key = make_page(tmp_path / "out", f"noted={tmp_path}/noted", f"plain={tmp_path}/plain")
    assert {(t.request, t.prompt) for t in key.trials} == {("32x32-00", "a red fox"), ("32x64-02", "two kites")}
    shown = capsys.readouterr().out
    assert f"matched by file name, for {tmp_path}/plain/32x32-00.jpg does not say its prompt, size and seed" in shown
    assert "1 of 3 pictures of noted have no counterpart in plain" in shown
    assert "1 of 3 pictures of plain have no counterpart in noted" in shown


def test_alignment_is_not_asked_where_nobody_knows_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 32)).save(tmp_path / name / "1.png")
    key = make_page(tmp_path / "out", f"a={tmp_path}/a", f"b={tmp_path}/b")
    assert [trial.question for trial in key.trials] == ["quality"]
    assert "alignment is not asked of 1 pairs: no file of theirs says its prompt" in capsys.readouterr().out


def test_a_pattern_chooses_files_of_a_folder(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "samples", 0.2, REQUESTS)
    write_set(folder, 0.8, REQUESTS, suffix="-teacher")
    key = make_page(tmp_path / "out", f"student={folder}/*[0-9].png", f"teacher={folder}/*-teacher.png")
    assert len(key.trials) == 2 * len(REQUESTS)


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "Alphaxl={0}"], "1 --set given: a comparison needs two models or more"),
        (["--set", "{0}", "--set", "b={1}"], "--set {0} is not NAME=FOLDER: name the model"),
        (["--set", "=x", "--set", "b={1}"], "--set =x is not NAME=FOLDER: name the model"),
        (["--set", "a={0}", "--set", "a={1}"], "--set a is given twice: give every model a name of its own"),
        (["--set", "a=/none/here/x", "--set", "b={1}"], "--set a=/none/here/x: there is no folder /none/here"),
        (["--set", "a={0}/*.gif", "--set", "b={1}"], "--set a={0}/*.gif: no .png, .jpg or .webp is there"),
        (["--set", "a={0}", "--set", "b={1}", "--against", "c"], "--against c is no --set: give one of a, b"),
        (["--set", "a={twice}", "--set", "b={1}"], "were drawn with one prompt, size and seed: leave one out"),
        (["--set", "a={other}", "--set", "b={1}"], "no picture of a belongs to one of b: draw both with the same"),
        (["--set", "a={damaged}", "--set", "b={1}"], "picture {damaged}/32x32-00.png cannot be read"),
        (["--set", "a={0}", "--set", "b={1}", "--out", "{0}"], "exists and holds no comparison of an earlier call"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: str(tmp_path / name) for name in ("twice", "other", "damaged")}
    write_set(tmp_path / "twice", 0.2, [*REQUESTS, REQUESTS[0]])
    write_set(tmp_path / "other", 0.2, [("a green door", "32x32", 5)])
    write_set(tmp_path / "damaged", 0.2, REQUESTS)
    file = tmp_path / "damaged" / "32x32-00.png"
    file.write_bytes(file.read_bytes()[:300])
    filled = [word.format(*sets.values(), **places) for word in ["--out", str(tmp_path / "out"), *words]]
    with pytest.raises(SystemExit) as ended:
        run_launcher("page.py", *filled)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and said.format(*sets.values(), **places) in line
    assert not (tmp_path / "out").exists()


def test_a_page_is_replaced_only_when_asked_for(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its key would be gone, and all answers with it."""
    words = [word for given in given_sets(sets) for word in ("--set", given)]
    first = make_page(tmp_path / "out", *given_sets(sets))
    with pytest.raises(SystemExit):
        run_launcher("page.py", *words, "--out", str(tmp_path / "out"))
    assert f"comparison folder {tmp_path / 'out'} exists: pass --overwrite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / KEY).read_text())["secret"] == first.secret
    run_launcher("page.py", *words, "--out", str(tmp_path / "out"), "--overwrite")
    assert json.loads((tmp_path / "out" / KEY).read_text())["secret"] != first.secret
