"""The commands of the documentation and of the launchers' help, for tests that run them."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
STARTERS = ("python", "torchrun", "deepspeed", "srun")
LAUNCHERS = sorted({*(ROOT / "launchers").rglob("*.py")} - {ROOT / "launchers/kubernetes/pod.py"})
"""But for what nobody starts by hand."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Command:
    """A command line as it is printed, in words.

    Attributes:
        env: variables that are set in front of it.
    """

    page: str
    env: dict[str, str]
    words: tuple[str, ...]


def commands(page: Path) -> list[Command]:
    """All command lines of a page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [_command(page.name, shlex.split(line, comments=True)) for line in lines if line.split("#")[0].strip()]


def examples(launcher: Path) -> list[Command]:
    """All command lines of what a launcher says under --help."""
    for node in ast.parse(launcher.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_DESCRIPTION":
            text = ast.literal_eval(node.value).replace("\\\n", " ")
            lines = re.findall(rf"^  ((?:{'|'.join(STARTERS)}) .*)$", text, re.MULTILINE)
            return [_command(launcher.name, shlex.split(line)) for line in lines]
    return []


def documented(page: str, *words: str) -> Command:
    """The one command of a page that has these words."""
    (found,) = [command for command in commands(ROOT / page) if set(words) <= set(command.words)]
    return found


def hostfile() -> list[str]:
    """The guide's, line by line."""
    (block,) = re.findall(r"^```\n((?:\S+ slots=\d+\n)+)```", (ROOT / "docs/guides.md").read_text(), re.MULTILINE)
    return block.splitlines()


def _command(page: str, words: list[str]) -> Command:
    env = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    return Command(page, env, tuple(words))
