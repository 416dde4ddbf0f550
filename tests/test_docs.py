"""The commands of the documentation and of --help: they parse, and what they name is there."""

import argparse
import re
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from documented import LAUNCHERS, PAGES, ROOT, STARTERS, Command, commands, examples, hostfile
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

from ladd_dist.config import load
from ladd_dist.engines.settings import check_ranks, check_settings

GUIDES = ROOT / "docs/guides.md"
HELP = [command for launcher in LAUNCHERS for command in examples(launcher)]
ALL = [command for page in PAGES for command in commands(page)] + HELP
STARTED = [command for command in ALL if command.words[0] in STARTERS]
OTHERS = {"make", "source", "cp", "docker", "enroot", "apptainer", "kubectl", "sbatch"}
LAUNCHER = re.compile(r"launchers/.*\.py")

Parse = Callable[[str, list[str]], argparse.Namespace]


def name_of(command: Command) -> str:
    return f"{command.page}: {' '.join(command.words)[:70]}"


class _Parsed(Exception):
    """What a launcher would go by."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """What a launcher makes of arguments."""
    whole = argparse.ArgumentParser.parse_intermixed_args

    def stop(self: argparse.ArgumentParser) -> None:
        raise _Parsed(whole(self))

    def parsed(launcher: str, arguments: list[str]) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", [launcher, *arguments])
        with monkeypatch.context() as stopping, pytest.raises(_Parsed) as found:
            stopping.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop)
            runpy.run_path(launcher, run_name="__main__")
        return found.value.args[0]

    return parsed


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """A file that a command names: one of ours, a copy of an example, or what the guide makes of one."""

    def found(name: str) -> str:
        if name == "medium.yaml":
            changed = re.search(r"^```yaml\n(.*?)^```", GUIDES.read_text(), re.MULTILINE | re.DOTALL)
            (tmp_path / name).write_text(changed[1].replace("extends: ", f"extends: {ROOT}/"))
            return str(tmp_path / name)
        return name if Path(name).is_file() else str(next(ROOT.glob(f"launchers/*/{name}")))

    return found


def worlds(words: tuple[str, ...]) -> list[int]:
    """The fewest and the most ranks that a command starts."""
    if words[0] == "torchrun":
        args = get_args_parser().parse_args(words[1:])
        return [nodes * int(args.nproc_per_node) for nodes in parse_min_max_nnodes(args.nnodes)]
    if words[0] == "deepspeed":
        from deepspeed.launcher.runner import _parse_hostfile, parse_args

        args = parse_args(list(words[1:]))
        return [sum(_parse_hostfile(hostfile()).values()) if args.hostfile == "hostfile" else args.num_gpus]
    return [1]


@pytest.mark.parametrize("command", STARTED, ids=name_of)
def test_what_a_command_starts_takes_it(command: Command, parse: Parse, file: Callable[[str], str]) -> None:
    if command.words[1] == "-m":
        assert find_spec(command.words[2])
        return
    number = next(n for n, word in enumerate(command.words) if LAUNCHER.fullmatch(word))
    launcher, *arguments = command.words[number:]
    arguments = [file(word) if word.endswith(".yaml") else word for word in arguments]
    args = parse(launcher, arguments)
    if "config" not in args:  # what people prefer is of pictures, whoever drew them
        return
    config = load(args.config, args.overrides)
    check_settings(config)
    for size in worlds(command.words):
        check_ranks(config, size)
        if launcher == "launchers/train.py" or (launcher == "launchers/preflight.py" and args.job == "train"):
            config.accumulation(getattr(args, "dry_run", None) or size)


def test_every_command_is_known() -> None:
    assert HELP and {command.words[0] for command in ALL} - {command.words[0] for command in STARTED} <= OTHERS


@pytest.mark.parametrize("target", sorted({c.words[1] for c in ALL if c.words[0] == "make"}))
def test_targets_of_make_are_there(target: str) -> None:
    assert re.search(rf"^{target}: ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_one_gpu_goes_the_way_of_the_demo() -> None:
    ours = [" ".join(c.words) for c in commands(GUIDES) if c.words[0] == "python" and "medium.yaml" in c.words]
    (recipe,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    steps = recipe.replace("$(BIN)/", "").replace("$(CONFIG)", "medium.yaml").replace(" $(OVERRIDES)", "")
    assert ours == [line.strip() for line in steps.splitlines()]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
