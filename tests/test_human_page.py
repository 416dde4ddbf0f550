"""The blind page in a real browser: by keys and by touch, interrupted, saved, and scored."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser import browsing, overflow, requested, resize, visit
from compared import make_page, prefers, run_launcher, write_set
from PIL import Image
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from ladd_dist.human.page import KEY, PAGE
from ladd_dist.human.scores import Scores
from ladd_dist.human.trials import Key, Trial

NASTY = "<script>console.error('ran')</script> & a \"three\" " + "with very many words " * 30
REQUESTS = [("a red fox", "32x32", 0), (NASTY, "288x320", 1), ("two kites", "416x608", 2), ("a mill", "64x32", 3)]
RED = {"student": 0.2, "teacher": 0.8}
ARROWS = {"left": Keys.ARROW_LEFT, "tie": Keys.ARROW_DOWN, "right": Keys.ARROW_RIGHT}
PHONE, DESKTOP = (360, 740), (1280, 800)


@dataclass(frozen=True)
class Comparison:
    """A page, its key, and the folder that holds both."""

    folder: Path
    key: Key

    @property
    def page(self) -> Path:
        return self.folder / PAGE


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A page of two models; tests only open it."""
    folder = tmp_path_factory.mktemp("comparison")
    sets = [f"{name}={write_set(folder / name, red, REQUESTS)}" for name, red in RED.items()]
    return Comparison(folder / "out", make_page(folder / "out", *sets))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with browsing(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture
def opened(browser: WebDriver, comparison: Comparison) -> WebDriver:
    """The page as somebody opens it who was never here."""
    visit(browser, comparison.page)
    browser.execute_script("localStorage.clear()")
    visit(browser, comparison.page)
    return browser


def wait_for(browser: WebDriver, condition: str) -> None:
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"return {condition}"))


def seen(browser: WebDriver) -> str:
    """The text that can be read."""
    return browser.execute_script("return document.body.innerText")


def shows(browser: WebDriver, trial: Trial, key: Key) -> None:
    """Wait until a trial can be answered, and see that it is this one, each picture on its side."""
    number = [t.id for t in key.trials if t.question == trial.question].index(trial.id) + 1
    wait_for(browser, f"document.getElementById('place').textContent.includes('· {number} of ')")
    wait_for(browser, "document.querySelector('[data-choice]').ariaDisabled === 'false'")
    for side, model in (("left", trial.left), ("right", trial.right)):
        address = browser.execute_script(f"return document.querySelector('#{side} img').src")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            red = np.asarray(picture.convert("RGB"))[..., 0].mean() / 255
        assert abs(red - RED[model]) < 0.15, "the key says whose it is"
    shown = seen(browser)
    prompt = " ".join((trial.prompt or "").split())
    assert (prompt in " ".join(shown.split())) == (trial.question == "alignment")


def press(browser: WebDriver, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def tap(browser: WebDriver, selector: str) -> None:
    """Touch the middle of a control, which must be in view and large enough for a finger."""
    box = browser.execute_script(f"return document.querySelector('{selector}').getBoundingClientRect().toJSON()")
    assert box["width"] >= 44 and box["height"] >= 44, f"{selector} is too small for a finger"
    assert box["left"] >= 0 and box["right"] <= PHONE[0] and box["top"] >= 0 and box["bottom"] <= PHONE[1], selector
    point = {"x": box["left"] + box["width"] / 2, "y": box["top"] + box["height"] / 2}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def download(browser: WebDriver, folder: Path, click: str) -> Path:
    folder.mkdir()
    allowed = {"behavior": "allow", "downloadPath": str(folder)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    browser.execute_script(f"document.querySelector('{click}').click()")
    WebDriverWait(browser, 60).until(lambda _: list(folder.glob("*.json")))
    (file,) = folder.glob("*.json")
    return file


def test_by_keys_with_a_reload_in_the_middle(opened: WebDriver, comparison: Comparison, tmp_path: Path) -> None:
    key, trials = comparison.key, comparison.key.trials
    choose = prefers("student")
    resize(opened, *DESKTOP)
    opened.find_element("id", "rater").send_keys("Ann Lee", Keys.ENTER)
    press(opened, Keys.ENTER)  # the first part's introduction
    shows(opened, trials[0], key)
    press(opened, "x", ARROWS["right" if choose(trials[0]) == "left" else "left"])
    shows(opened, trials[1], key)
    press(opened, ARROWS[choose(trials[1])])
    shows(opened, trials[2], key)
    press(opened, Keys.BACKSPACE)
    shows(opened, trials[1], key)
    press(opened, Keys.BACKSPACE)
    shows(opened, trials[0], key)
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.choice)"
    assert opened.execute_script(f"return {pressed}") != [choose(trials[0])], "the wrong one is marked"
    press(opened, ARROWS[choose(trials[0])])
    shows(opened, trials[1], key)

    visit(opened, comparison.page)
    assert opened.execute_script("return document.getElementById('rater').value") == "Ann Lee"
    opened.find_element("id", "begin").click()
    shows(opened, trials[2], key)
    for trial in trials[2:]:
        if trial == trials[4]:
            wait_for(opened, "!document.getElementById('part').hidden")
            assert "Part 2 of 2".upper() in seen(opened).upper()
            press(opened, Keys.ENTER)
        shows(opened, trial, key)
        press(opened, ARROWS["tie" if trial == trials[-1] else choose(trial)])
    wait_for(opened, "!document.getElementById('end').hidden")
    assert "8 of 8 answered".upper() in seen(opened).upper()

    file = download(opened, tmp_path / "downloads", "#download")
    assert file.name == f"answers-{key.page[:6]}-Ann-Lee.json"
    others = {url for url in requested(opened) if not url.startswith("blob:")}  # a blob is the file that it saves
    assert others <= {comparison.page.as_uri(), "data:"}
    assert opened.get_log("browser") == []
    run_launcher("score.py", "--key", str(comparison.folder / KEY), "--out", str(tmp_path / "scores"), str(file))
    scores = Scores.model_validate_json((tmp_path / "scores" / "scores.json").read_bytes())
    assert [(r.question, r.wins, r.ties, r.losses) for r in scores.win_rates] == [
        ("quality", 4, 0, 0),
        ("alignment", 3, 1, 0),
    ]


def test_by_touch_on_a_phone(opened: WebDriver, comparison: Comparison) -> None:
    key, chosen = comparison.key, ["left", "tie", "right"]
    resize(opened, *PHONE, mobile=True)
    assert overflow(opened) == 0
    opened.find_element("id", "rater").send_keys("Ben")
    tap(opened, "#begin")
    answers = {}
    for number, trial in enumerate(key.trials):
        if number in (0, 4):
            wait_for(opened, "!document.getElementById('part').hidden")
            assert overflow(opened) == 0
            tap(opened, "#go")
        shows(opened, trial, key)
        assert overflow(opened) == 0
        assert opened.execute_script("return document.documentElement.scrollHeight") <= PHONE[1]
        boxes = opened.execute_script(
            "return [...document.querySelectorAll('#stage img')].map(i => i.getBoundingClientRect().toJSON())"
        )
        assert all(box["width"] > 60 and box["left"] >= 0 and box["right"] <= PHONE[0] for box in boxes)
        assert all(box["bottom"] <= PHONE[1] - 60 for box in boxes), "above the buttons"
        answers[trial.id] = chosen[number % 3]
        tap(opened, f"[data-choice={answers[trial.id]}]")
        if number == 1:
            shows(opened, key.trials[2], key)
            tap(opened, "#back")
            shows(opened, trial, key)
            tap(opened, f"[data-choice={answers[trial.id]}]")
    wait_for(opened, "!document.getElementById('end').hidden")
    assert overflow(opened) == 0
    saved = json.loads(opened.execute_script("return document.getElementById('text').value"))
    assert (saved["page"], saved["rater"], saved["answers"]) == (key.page, "Ben", answers)
    assert opened.get_log("browser") == []


def test_answers_so_far_can_be_saved_and_the_page_goes_on(
    opened: WebDriver, comparison: Comparison, tmp_path: Path
) -> None:
    key = comparison.key
    resize(opened, *DESKTOP)
    opened.find_element("id", "rater").send_keys("…", Keys.ENTER)
    press(opened, Keys.ENTER)
    shows(opened, key.trials[0], key)
    held = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37, "autoRepeat": True}
    opened.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "rawKeyDown", **held})
    shows(opened, key.trials[0], key)
    twice = "for (const _ of '12') document.body.dispatchEvent(new KeyboardEvent('keydown', pressed));"
    opened.execute_script(f"const pressed = {{ key: 'ArrowDown', bubbles: true }}; {twice}")
    shows(opened, key.trials[1], key)
    assert opened.get_log("browser") == [], "the second came before there was anything to answer"
    opened.find_element("id", "pause").click()
    file = download(opened, tmp_path / "downloads", "#download")
    assert file.name == f"answers-{key.page[:6]}-rater.json"
    assert json.loads(file.read_text())["answers"] == {key.trials[0].id: "tie"}
    opened.find_element("id", "resume").click()
    shows(opened, key.trials[1], key)


def test_every_control_and_picture_has_a_name(opened: WebDriver) -> None:
    unnamed = opened.execute_script(
        "return [...document.querySelectorAll('button, input, textarea, img, [tabindex]')].filter(e =>"
        " !(e.textContent.trim() || e.ariaLabel || e.alt || (e.labels && e.labels.length))).map(e => e.id)"
    )
    assert unnamed == []
    assert opened.execute_script("return document.documentElement.lang") == "en"


def test_nothing_but_the_pages_own_script_runs(opened: WebDriver) -> None:
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i);"
    )
    assert opened.execute_script("return window.ran") is None
    refused = "\n".join(entry["message"] for entry in opened.get_log("browser"))
    assert "script-src" in refused and "img-src" in refused
