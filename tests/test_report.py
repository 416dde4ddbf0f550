"""The run report: its inputs, its figures, and the page in a real browser."""

import base64
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import browsing, overflow, requested, resize, visit
from markupsafe import escape
from PIL import Image
from selenium.webdriver.chrome.webdriver import WebDriver

from ladd_dist.config import load
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.results import Results
from ladd_dist.evaluation.table import table
from ladd_dist.report.page import conclusion, write_report

SETS = ["teacher_guided", "teacher_4", "teacher_1", "student_4", "student_2", "student_1"]
BUCKETS = {"32x32": 8, "32x64": 3, "64x32": 2}
NASTY = "<script>console.error('ran')</script> & a \"three\" <b>bold</b>"
FIGURES = ["comparison.png", "losses.png", "logits.png", "gradients.png", "speed.png"]


def metrics_row(iteration: int, heads: int = 4) -> dict:
    noise, fall = random.Random(iteration).gauss(0, 0.1), math.exp(-iteration / 300)
    return {
        "iteration": iteration,
        "d_loss": 1.4 + 0.6 * fall + noise,
        "g_loss": 0.2 + noise,
        "r1": 0.05 * fall + 0.01,
        "real_logit": [0.5 + 0.1 * h + noise for h in range(heads)],
        "fake_logit": [-0.4 - 0.1 * h + noise for h in range(heads)],
        "real_right": 0.7,
        "fake_right": 0.65,
        "student_grad_norm": 0.01 * (1 + fall),
        "head_grad_norm": 0.5 + abs(noise),
        "samples_per_second": 190 + 20 * noise,
        "student_lr": 5e-4 * fall,
        "head_lr": 1e-3 * fall,
    }


def number(value: float | None) -> dict | None:
    return None if value is None else {"value": value, "low": value - 0.25, "high": value + 0.25}


def score(name: str, fd: float, ratio: float | None, read: float | None) -> dict:
    role, kind = name.split("_")
    steps = 20 if kind == "guided" else int(kind)
    label = "teacher, 20 steps, guidance 2.5" if kind == "guided" else f"{role}, {steps} step" + "s" * (steps > 1)
    judge = {"fd": number(fd), "kid": {"value": 0.125}, "excess": number(fd - 0.4125), "ratio": number(ratio)}
    measures = {"pictures": 1000, "judge": judge, "read": number(read)}
    return {
        "name": name,
        "label": label,
        "role": role,
        "steps": steps,
        "guidance": 2.5 if kind == "guided" else 1.0,
        "seconds_per_image": 0.0025 * steps,
        "measures": measures,
        "measures_by_bucket": {b: measures | {"read": number(read and read - 0.001)} for b in BUCKETS},
    }


def results(read: bool = True) -> dict:
    rows = zip(
        SETS,
        [0.4125, 2.3125, 9.8125, 0.8115, 1.1025, 1.7625],
        [None, None, None, 0.21, None, 0.1436],
        [0.987, 0.913, 0.334, 0.991, 0.982, 0.956],
        strict=True,
    )
    return {
        "seed": 0,
        "samples": 1000,
        "judge": "digits",
        "checkpoint": "step-00001000",
        "digest": "00ff",
        "weights": "ema",
        "features": (1000, 48),
        "sets": [score(name, fd, ratio, share if read else None) for name, fd, ratio, share in rows],
    }


def write_pictures(root: Path, buckets: dict[str, int]) -> None:
    random_pixels = np.random.default_rng(0)
    prompts = {b: [NASTY, *(f"prompt {i} of {b}" for i in range(1, n))] for b, n in buckets.items()}
    for bucket, count in buckets.items():
        height, width = map(int, bucket.split("x"))
        for path in (root / name / bucket / f"{i:02d}.png" for name in SETS for i in range(count)):
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = random_pixels.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height)).save(path)
    (root / "index.json").write_text(json.dumps({"sets": SETS, "buckets": prompts}))


def write_metrics(run: Path, rows: list[dict]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path) -> Path:
    folder.mkdir()
    load("configs/tiny_cpu.yaml", [f"run_dir={folder}", "train.iterations=1000"]).save(folder / "config.yaml")
    write_metrics(folder, [metrics_row(i) for i in range(10, 1001, 10)])
    write_pictures(folder / "evaluation" / "pictures", BUCKETS)
    (folder / "evaluation" / "results.json").write_text(json.dumps(results()))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report written once; tests only read it."""
    return write_report(make_run(tmp_path_factory.mktemp("report") / "my <run>"))


# Inputs


@pytest.mark.parametrize(
    ("file", "launcher"),
    [
        ("config.yaml", "train"),
        ("metrics.jsonl", "train"),
        ("evaluation/results.json", "evaluate"),
        ("evaluation/pictures/index.json", "evaluate"),
        ("evaluation/pictures/student_2/32x64/01.png", "evaluate"),
    ],
)
def test_a_missing_input_is_named_with_its_launcher(run: Path, file: str, launcher: str) -> None:
    (run / file).unlink()
    with pytest.raises(LaddError, match=rf"{file} is missing: run launchers/{launcher}\.py"):
        write_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize("text", ['{"seed": 0, "sam', "{}", json.dumps(results() | {"sets": []})])
def test_damaged_results_are_an_error(run: Path, text: str) -> None:
    (run / "evaluation" / "results.json").write_text(text)
    with pytest.raises(LaddError, match=r"results\.json .*run launchers/evaluate\.py again"):
        write_report(run)


def test_metrics_without_rows_are_an_error(run: Path) -> None:
    write_metrics(run, [])
    with pytest.raises(LaddError, match=r"metrics\.jsonl has no rows"):
        write_report(run)


# Words and figures


def test_the_conclusion_says_who_is_nearer() -> None:
    good = results()
    assert "comes nearer to the guided teacher" in conclusion(Results.model_validate(good))
    assert "excess Fréchet distance is 0.399 against 1.9 (0.21x), and 99.1% of its" in conclusion(
        Results.model_validate(good)
    )
    bad = results()
    bad["sets"][3] = score("student_4", 2.5125, 1.11, 0.991)
    assert "comes no nearer to the guided teacher" in conclusion(Results.model_validate(bad))


def test_the_conclusion_without_accuracy_or_ratio() -> None:
    plain = results(read=False)
    del plain["sets"][1]  # the undistilled teacher at four steps
    text = conclusion(Results.model_validate(plain))
    assert text == "In 4 steps the student's excess Fréchet distance is 0.399."


def without_a_base() -> dict:
    """The undistilled teacher at 4 steps is nearer to the guided one than that to itself."""
    tree = results()
    tree["sets"][1] = score("teacher_4", 0.2125, None, 0.913)
    tree["sets"][3] = score("student_4", 0.0125, None, 0.991)
    return tree


def test_over_a_base_that_is_not_positive_there_is_no_ratio(run: Path) -> None:
    found = Results.model_validate(without_a_base())
    reason = (
        "no ratio for student, 4 steps: the undistilled teacher's excess, -0.2, is not positive, so 1000 "
        "pictures cannot tell it from the guided teacher"
    )
    assert found.caveats == [reason]
    header, *rows = table(found)[: len(SETS) + 1]
    assert table(found)[-1] == reason and rows[3].split()[-6:] == ["-0.4", "±", "0.25", "no", "ratio", "99.1%"]
    assert {line.rindex("%") for line in rows} == {len(header) - 1}
    assert json.loads(found.model_dump_json())["caveats"] == [reason]
    assert Results.model_validate_json(found.model_dump_json()) == found

    assert "excess Fréchet distance is -0.4, which has no ratio to the undistilled teacher's -0.2" in conclusion(
        found
    )
    (run / "evaluation" / "results.json").write_text(found.model_dump_json(), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("<td>no ratio</td>") == 1 and f"N{escape(reason[1:])}." in page


@pytest.mark.parametrize(("vectors", "singular"), [(48, True), (49, False)])
def test_fewer_pictures_than_features_are_said(vectors: int, singular: bool) -> None:
    found = Results.model_validate(results() | {"features": (vectors, 48)})
    told = f"{vectors} feature vectors per set are too few for 48 features, whose covariances would be singular"
    assert [caveat.startswith(told) for caveat in found.caveats] == [True] * singular
    assert found.caveats == table(found)[len(table(found)) - singular :]


def test_kernel_distances_are_called_so_where_they_stand_for_frechet_distances() -> None:
    few = results()
    for scored in few["sets"]:
        scored["measures"]["judge"]["fd"] = None
    found = Results.model_validate(few)
    assert "its kernel distance is 0.399 against 1.9 (0.21x)" in conclusion(found)
    assert table(found)[4].split()[:5] == ["student,", "4", "steps", "0.399", "±"]


def test_figures_beside_the_page(page: Path) -> None:
    widths = {}
    for name in FIGURES:
        with Image.open(page.parent / name) as picture:
            widths[name] = picture.width
    assert 1200 <= widths["comparison.png"] <= 1600, widths
    assert min(widths.values()) >= 1000, widths


def test_big_pictures_many_heads_and_no_accuracy(run: Path) -> None:
    shutil.rmtree(run / "evaluation" / "pictures")
    write_pictures(run / "evaluation" / "pictures", {"320x320": 2, "192x336": 1})
    (run / "evaluation" / "results.json").write_text(json.dumps(results(read=False)))
    write_metrics(run, [metrics_row(10, heads=38)])
    load("configs/tiny_cpu.yaml", ["train.micro_batch=24"]).save(run / "config.yaml")
    page = write_report(run)
    assert page.stat().st_size < 2_000_000
    assert "read right" not in page.read_text()
    assert "24 per rank and pass" in page.read_text()


def test_what_was_measured_is_shown_of_all_pictures_and_by_bucket(run: Path) -> None:
    """Without columns that nobody has."""
    found = results() | {"missing": ["Without the scorer clip:/x: there is no such folder"]}
    for scored in found["sets"]:
        scored["measures"]["scores"] = {"stroke": {"value": 7.5}}
        scored["measures_by_bucket"] = dict.fromkeys(("32x32", "32x64"), scored["measures"])
    (run / "evaluation" / "results.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    assert [page.count(f"<h3>{heading}</h3>") for heading in ("All pictures", "32 x 32", "32 x 64")] == [1, 1, 1]
    assert page.count("<td>0.399 ± 0.25</td>") == 4, "a student's excess, in the first table and in three"
    assert page.count('scope="col">stroke</th>') == 3 and "diversity</th>" not in page
    assert "Without the scorer clip:/x" in page


def evaluation_row(iteration: int, few: bool = False) -> dict:
    measures = {}
    for name in (*SETS, "teacher_4_renoised"):
        value = (5 if name.startswith("teacher") else 400 / iteration) + len(name) / 10
        excess = {"value": value} if few else number(value)
        measures[name] = {"pictures": 24, "judge": {"kid": {"value": value / 2}, "excess": excess}}
    return {"iteration": iteration, "judge": "digits", "overall": measures, "by_bucket": {}}


@pytest.mark.parametrize("few", [False, True])
def test_evaluations_while_it_trained_are_a_chart_of_the_page(run: Path, few: bool) -> None:
    """Also a single one without intervals."""
    rows = [evaluation_row(i, few) for i in ((500,) if few else (250, 500, 750, 1000))]
    write_metrics(run, [metrics_row(10)])
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    assert page.count('alt="Curves of the student&#39;s distances to the guided teacher over iterations') == 1
    with Image.open(run / "report" / "evaluations.png") as picture:
        assert picture.width >= 1000


# The page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with browsing(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture
def opened(browser: WebDriver, page: Path) -> WebDriver:
    visit(browser, page)
    return browser


def test_page_is_self_contained(opened: WebDriver, page: Path) -> None:
    images = opened.execute_script(
        "return [...document.images].map(i => [i.src.slice(0, 11), i.naturalWidth, i.alt])"
    )
    assert len(images) == 6 * sum(BUCKETS.values()) + 4
    assert all(source == "data:image/" and width > 0 and alt for source, width, alt in images)
    assert requested(opened) <= {page.as_uri(), "data:"}
    assert opened.get_log("browser") == []
    assert page.stat().st_size < 10_000_000


def test_page_shows_the_numbers(opened: WebDriver) -> None:
    text = opened.execute_script("return document.body.innerText")
    for shown in (
        "my <run>",
        "0.21x",
        "99.1%",
        "98.7%",
        "9.812",
        "0.399",
        "1,000 of 1,000",
        "step-00001000",
        "each rank's share",
    ):
        assert shown in text, shown


@pytest.mark.parametrize("bucket", BUCKETS)
def test_page_shows_every_set_and_prompt(opened: WebDriver, bucket: str) -> None:
    table = f"document.getElementById('bucket-{bucket}')"
    cells = opened.execute_script(f"return [...{table}.tBodies[0].rows].map(row => row.cells.length)")
    assert cells == [1 + BUCKETS[bucket]] * 6
    assert opened.execute_script(f"return {table}.tHead.rows[0].cells[1].textContent") == NASTY


def test_prompts_are_text(opened: WebDriver) -> None:
    assert opened.execute_script("return document.querySelectorAll('script, b').length") == 0


@pytest.mark.parametrize("width", [400, 1300])
def test_page_fits_its_window(opened: WebDriver, width: int) -> None:
    resize(opened, width)
    assert overflow(opened) == 0


def test_small_pictures_are_inlined_unchanged(opened: WebDriver, page: Path, tmp_path: Path) -> None:
    source = opened.execute_script("return document.querySelectorAll('#pictures img')[1].src")
    inlined = tmp_path / "inlined.png"
    inlined.write_bytes(base64.b64decode(source.partition(",")[2]))
    original = page.parents[1] / "evaluation/pictures/teacher_guided/32x32/01.png"
    with Image.open(inlined) as big, Image.open(original) as small:
        assert big.size == (128, 128)
        assert np.array_equal(np.asarray(big)[::4, ::4], np.asarray(small))
