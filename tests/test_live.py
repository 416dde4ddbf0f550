"""The page of a run that goes on: in a real browser while it trains, and what becomes of it where something fails."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from math import log
from pathlib import Path

import numpy as np
import pytest
from browser import browsing, visit
from conftest import ALONE, TINY, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.webdriver import WebDriver
from test_report import NASTY, metrics_row, write_metrics

from ladd_dist.config import Config, load
from ladd_dist.drawing.pictures import pixels_of, save_png
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.report import charts
from ladd_dist.report.live import write_live
from ladd_dist.report.series import departures, running_mean, thin
from ladd_dist.training import page as page_module
from ladd_dist.training.page import LivePage
from ladd_dist.training.trainer import Trainer

STATUS = "document.getElementById('status').innerText"


def until(condition: Callable[[], object]) -> None:
    """Wait for it; the limit is the test's own."""
    while not condition():
        time.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Config:
    """A run of six rows, as the page's program finds it."""
    config = tiny_config(tmp_path / "run", dataset, "tracking.page_every=1e-9")
    (tmp_path / "run").mkdir()
    config.save(tmp_path / "run" / "config.yaml")
    write_metrics(tmp_path / "run", [metrics_row(i) for i in range(1, 6)])
    return config


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings."""
    lines: list[str] = []
    monkeypatch.setattr(page_module, "warn", lines.append)
    return lines


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last page is waited for, and has its share of the processor, however busy the machine is."""
    monkeypatch.setattr(page_module, "_LAST_PAGE", 1000.0)
    monkeypatch.setattr(page_module, "_LOWEST_PRIORITY", 0)


# In a browser, while it trains


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with browsing(tmp_path_factory.mktemp("profile")) as session:
        yield session


def test_the_open_page_follows_the_training_keeps_its_place_and_comes_to_rest(
    tmp_path: Path, dataset: Path, browser: WebDriver, patient: None, told: list[str]
) -> None:
    config = tiny_config(tmp_path, dataset, "train.preview_every=1", "tracking.page_every=1e-9")
    training, file = Trainer(config, ALONE).iterations(), tmp_path / "report/index.html"
    assert next(training) == 1 and next(training) == 2
    until(file.is_file)
    visit(browser, file)
    browser.set_window_size(900, 500)

    def shown(script: str) -> object:
        try:
            return browser.execute_script(f"return {script}")
        except WebDriverException:  # it is just loading itself
            return None

    def says(words: str) -> bool:
        return words in str(shown(STATUS))

    until(lambda: re.search(r" of 6, \d+:\d\d:\d\d left; written at 20", str(shown(STATUS))))
    drawn = "[...document.querySelectorAll('.strip img')].filter(i => i.complete && i.naturalWidth && i.alt).length"
    until(lambda: shown(drawn) == 3 and shown("document.documentElement.scrollHeight > 2000"))
    browser.execute_script("scrollTo(0, 1234); window.before = true")

    assert next(training) == 3 and next(training) == 4
    until(lambda: says("Iteration 4 of 6") and shown("document.readyState") == "complete")
    until(lambda: "iteration 4" in str(shown("document.querySelector('#pictures h3').innerText")))
    until(lambda: shown("[window.before, scrollY]") == [None, 1234])

    assert list(training) == [5, 6]
    until(lambda: says("Iteration 6 of 6; written"))
    until(lambda: shown("[document.querySelectorAll('meta[http-equiv=refresh]').length, scrollY]") == [0, 1234])
    assert "FINISHED" in str(shown("document.body.innerText"))
    browser.execute_script("window.before = true")
    time.sleep(2)  # twice the seconds between two reloads of the page before
    assert shown("window.before") is True
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert told == []


def test_a_page_that_nobody_writes_says_that_it_is_stale(run: Config, browser: WebDriver) -> None:
    file = write_live(Path(run.run_dir), every=30, going_on=True)
    visit(browser, file)
    assert browser.execute_script("return document.getElementById('stale').hidden")
    written = browser.execute_script("return Number(document.getElementById('status').dataset.written)")
    assert abs(written - file.stat().st_mtime) < 60
    browser.execute_script("document.getElementById('status').dataset.written = Date.now() / 1000 - 600")
    until(lambda: browser.execute_script("return !document.getElementById('stale').hidden"))
    assert "nothing new for 10 minutes" in browser.execute_script("return document.getElementById('stale').innerText")


# What it shows


def strip(run: Config, iteration: int, bucket: str, color: str) -> None:
    picture = pixels_of(Image.new("RGB", (64, 32), color))
    save_png(picture, Path(run.run_dir) / f"previews/{iteration:08d}/{bucket}.png", {"prompts": json.dumps([NASTY])})


def test_newest_samples_are_those_up_to_the_last_row_and_prompts_are_text(run: Config) -> None:
    for iteration, bucket in ((2, "32x32"), (4, "32x32"), (2, "64x32"), (6, "64x32")):  # 6: of a run that went back
        strip(run, iteration, bucket, "red")
    text = write_live(Path(run.run_dir), every=30, going_on=True).read_text()
    assert "Square: 32 px high, 32 px wide, iteration 4</h3>" in text
    assert "Portrait: 64 px high, 32 px wide, iteration 2</h3>" in text
    assert text.count('<table class="strip"') == 2
    assert text.count("<script>") == 1 and "&lt;script&gt;console" in text


def test_a_bucket_without_prompts_of_its_own_is_drawn_too(tmp_path: Path, dataset: Path) -> None:
    prompts = tmp_path / "one.jsonl"
    prompts.write_text('{"prompt": "a five", "bucket": "32x64"}\n')
    overrides = ["train.preview_every=3", "train.iterations=3", f"evaluation.prompts={prompts}"]
    Trainer(tiny_config(tmp_path / "run", dataset, *overrides), ALONE).run()
    drawn = {path.stem: path for path in (tmp_path / "run/previews/00000003").iterdir()}
    assert drawn.keys() == {"32x32", "32x64", "64x32"}
    for bucket, path in drawn.items():
        height, width = map(int, bucket.split("x"))
        with Image.open(path) as picture:
            assert json.loads(picture.info["prompts"]) == ["a five"]
            assert picture.width - width == 4 and 0 < picture.height - height <= 6  # a grey frame


def test_the_first_rows_can_be_shown(run: Config) -> None:
    write_metrics(Path(run.run_dir), [metrics_row(1)])
    assert "Iteration\n1 of 6" in write_live(Path(run.run_dir), every=30, going_on=True).read_text()


def test_what_has_left_its_healthy_band_is_said(run: Config) -> None:
    rows = [metrics_row(i) for i in range(1, 31)]
    assert departures(rows, Ladd.CHARTS) == []
    for row in rows[-10:]:
        row |= {"real_right": 0.99, "d_loss": 0.05}
    first, second = departures(rows, Ladd.CHARTS)
    assert first.startswith("Discriminator loss: 0.05 is below the healthy 0.2 to 2.1: ")
    assert "judged rightly, all heads (%), real: 99 is above the healthy 15 to 95: the heads have won" in second
    write_metrics(Path(run.run_dir), rows)
    assert f"{first}." in write_live(Path(run.run_dir), every=30, going_on=True).read_text().replace("&#39;", "'")


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count)


def test_a_band_is_shaded_where_the_panel_has_it() -> None:
    (axes, other), chart = Figure().subplots(2), Ladd.CHARTS[0]
    for panel, drawn in zip(chart.panels, (axes, other), strict=True):
        charts._scale(drawn, panel, [metrics_row(1)])
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (0.2, 2.1) and not other.patches


@pytest.mark.parametrize(("loss", "blind"), [("hinge", 2.0), ("softplus", 2 * log(2)), ("relativistic", 2 * log(2))])
def test_what_heads_cost_that_say_nothing_is_drawn_by_the_loss(loss: str, blind: float) -> None:
    top = Ladd.charts(load(TINY, [f"method.loss={loss}"]))[0].top
    assert top.level is not None and top.level[0] == pytest.approx(blind)


curves = st.builds(noise, st.integers(1, 4000), st.integers(0, 2**32 - 1))


@given(curves)
def test_a_thinned_curve_keeps_its_ends_and_extremes(y: np.ndarray) -> None:
    x = np.arange(len(y))
    kept, values = thin(x, y)
    assert len(kept) <= 1002 and np.array_equal(y[kept], values) and (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(y) - 1) and (values.min(), values.max()) == (y.min(), y.max())


@given(curves)
def test_the_running_mean_is_the_mean_of_its_window(y: np.ndarray) -> None:
    half, means = len(y) * 3 // 200, running_mean(y)
    for i in {0, len(y) // 2, len(y) - 1}:
        np.testing.assert_allclose(means[i], y[max(0, i - half) : i + half + 1].mean(), atol=1e-6)


# Where something fails


def test_a_program_that_fails_is_one_warning(tmp_path: Path, dataset: Path, told: list[str]) -> None:
    live = LivePage(tiny_config(tmp_path, dataset, "tracking.page_every=1e-9"), tmp_path)  # nothing lies there
    live.write()
    assert live._process is not None
    live._process.wait()
    for _ in range(3):
        live.write()
    live.close()
    (line,) = told
    assert line.startswith("the page of the run is no longer written (") and "config.yaml" in line
    assert line.endswith("): the run goes on, metrics.jsonl has everything")


def test_a_program_that_hangs_holds_up_nothing(run: Config, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_LAST_PAGE", 0.1)
    live = LivePage(run, Path(run.run_dir))
    live.write()
    assert live._process is not None
    os.kill(live._process.pid, signal.SIGSTOP)
    for _ in range(70_000):  # a pipe holds 65,536 bytes
        live.write()
    assert told == []
    live.close()
    assert len(told) == 1 and "the last one takes more than 0.1 s" in told[0]


def test_where_the_training_is_killed_the_last_page_says_how_far_it_came(run: Config, told: list[str]) -> None:
    live = LivePage(run, Path(run.run_dir))
    live.write()
    assert live._process is not None and live._process.stdin is not None
    assert os.getpriority(os.PRIO_PROCESS, live._process.pid) == 19
    live._process.stdin.close()  # as the system does
    assert live._process.wait() == 0
    text = (Path(run.run_dir) / "report/index.html").read_text()
    assert "Distillation: stopped" in text and 'http-equiv="refresh"' not in text
    assert "Iteration\n5 of 6;\nwritten" in text


def test_a_short_run_starts_no_program(tmp_path: Path, dataset: Path, told: list[str]) -> None:
    live = LivePage(tiny_config(tmp_path, dataset, "tracking.page_every=1e6"), tmp_path)
    live.write()
    live.close()
    assert live._process is None and told == []
