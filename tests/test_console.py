"""Losing the console is not losing the run."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import TINY, tiny_overrides
from launch import ROOT, environment
from recorded import newest

from ladd_dist.training.tracking import read_metrics

_PRINTS = """
import sys, warnings
from ladd_dist.supervision import console
console.outlive()
for number in range(1000):
    print("out", number)
    print("error", number, file=sys.stderr)
warnings.warn("too", stacklevel=1)
sys.stdout.flush()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    file.write(f"{sys.stderr.isatty()} the end")
sys.exit(75)
"""


@pytest.mark.parametrize("how", ["", "2>&1 | head -1", ">&- 2>&-", "2>&-", "> /dev/full 2>&1"])
def test_a_process_outlives_its_console(tmp_path: Path, how: str) -> None:
    code = f'{{ "$0" -c "$1" "$2"; echo $? > "$2.code"; }} {how}'
    command = ["bash", "-c", code, sys.executable, _PRINTS, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (tmp_path / "file.code").read_text() == "75\n", done.stderr
    assert (tmp_path / "file").read_text() == "False the end"
    assert how or (done.stdout.count("out"), done.stderr.count("error")) == (1000, 1000)


def test_a_terminal_that_does_not_keep_up_is_dropped_from(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b" " * 4096)
    command = [sys.executable, "-c", _PRINTS, str(tmp_path / "file")]
    assert subprocess.run(command, cwd=ROOT, stdout=writer, stderr=writer, timeout=600).returncode == 75
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read().strip() == b""


@pytest.mark.slow
def test_a_run_outlives_its_console_and_its_mirror(tmp_path: Path, dataset: Path) -> None:
    settings = [*tiny_overrides(tmp_path, dataset), "tracking.wandb=offline", "train.preview_every=3"]
    command = [sys.executable, "launchers/train.py", "--config", TINY, *settings]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 0
    assert newest(tmp_path).state.iteration == 6
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
