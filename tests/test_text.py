"""Text is UTF-8 whatever the locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from test_layers import MODULES

_TEXT_METHODS = {"read_text", "write_text"}
_PROCESSES = {"run", "Popen", "check_output"}


def unencoded(source: str) -> list[int]:
    """Lines of calls that leave the encoding of text to the locale."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _left_open(node)]


def _left_open(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg for keyword in call.keywords}
    if name in _TEXT_METHODS:
        return "encoding" not in given
    if name in ("open", "fdopen", "NamedTemporaryFile"):
        modes = [
            value for value in ast.walk(call) if isinstance(value, ast.Constant) and isinstance(value.value, str)
        ]
        if getattr(getattr(call.func, "value", None), "id", "") in ("os", "Image"):
            return False  # bytes
        return "encoding" not in given and not any("b" in mode.value for mode in modes)
    return name in _PROCESSES and bool(given & {"text", "universal_newlines"}) and "encoding" not in given


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text('x')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('a')", True),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
        ("Image.open(path)", False),
    ],
)
def test_what_counts_as_left_to_the_locale(code: str, found: bool) -> None:
    assert bool(unencoded(code)) == found


def test_no_text_is_left_to_the_locale() -> None:
    left = {str(path.relative_to(ROOT)): unencoded(path.read_text(encoding="utf-8")) for path in MODULES.values()}
    assert {name: lines for name, lines in left.items() if lines} == {}


_IN_ASCII = """
import locale, sys
from pathlib import Path
from ladd_dist.config.arguments import as_text
from ladd_dist.config import load
from ladd_dist.data.prompts import read_prompts
from ladd_dist.errors import LaddError
assert locale.getpreferredencoding(False) in ("ANSI_X3.4-1968", "US-ASCII"), locale.getpreferredencoding(False)
folder, name = Path(sys.argv[1]), "sch\\u00f6n"
assert as_text(sys.argv[2]) == f"tracking.project={name}"
config = load(folder / "c.yaml", [as_text(sys.argv[2])])
config.save(folder / "saved.yaml")
assert load(folder / "saved.yaml") == config and config.tracking.project == name
assert read_prompts(folder / "p.txt", ["32x32"])[0].prompt == name
try:
    load(folder / "c.yaml", [f"run_dir=runs/{name}"])
except LaddError as error:
    sys.exit(str(error))
"""


def test_text_is_utf_8_where_the_locale_is_ascii(tmp_path: Path) -> None:
    """File names are the locale's: one that it cannot write is refused."""
    text = (ROOT / TINY).read_text(encoding="utf-8") + "# für alle\n"
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "p.txt").write_text("schön\n", encoding="utf-8")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", _IN_ASCII, str(tmp_path), "tracking.project=schön"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=900)
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'c.yaml'}: run_dir: must be a path that this locale can encode (start with PYTHONUTF8=1), "
        "not 'runs/sch\\xf6n'"
    ]
