"""A real browser for tests of pages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from system import require

_FLAGS = ["headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"]
_FLAGS += ["disable-component-update", "disable-sync"]


@contextmanager
def browsing(profile: Path) -> Iterator[WebDriver]:
    """A headless Chromium with a profile folder of its own, which notes what pages say and ask for."""
    chromium, driver = require("chromium", "chromedriver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in [*_FLAGS, f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = WebDriver(options, Service(executable_path=driver))
    try:
        yield session
    finally:
        session.quit()


def visit(browser: WebDriver, page: Path) -> None:
    """Open a file, and forget what earlier pages said."""
    browser.get("about:blank")
    for log in ("browser", "performance"):  # of the browser's own start page
        browser.get_log(log)
    browser.get(page.as_uri())


def requested(browser: WebDriver) -> set[str]:
    """Addresses the page asked for, data URIs by their scheme alone."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {"data:" if url.startswith("data:") else url for url in urls}


def resize(browser: WebDriver, width: int, height: int = 900, mobile: bool = False) -> None:
    """Make the window that big; a phone's takes touches."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})
    assert browser.execute_script("return innerWidth") == width


def overflow(browser: WebDriver) -> int:
    """Pixels by which the page is wider than its window."""
    page = "document.documentElement"
    return browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth")
