"""What the image is made of, where there is nothing to build one with: its scripts, its settings, what is copied."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
HANG = 600


def instructions(name: str) -> list[str]:
    return [" ".join(rest.split()) for rest in re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)]


def environment(cache: str) -> dict[str, str]:
    """ENV's variables, with places of the image as they are here."""
    settings = " ".join(instructions("ENV")).replace("/cache", cache)
    variables = dict(word.split("=", 1) for word in settings.split())
    return variables | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_any_user_runs_it_on_a_read_only_root(privileged: None) -> None:
    """`container/check.py` as uid 12345, which may write to /mnt alone, in place of /cache and /tmp.

    It may read what only root can: this machine's Python may lie in root's home.
    """
    mounts = ["mount --make-rprivate /", "mount -t tmpfs -o mode=1777 tmpfs /mnt", "mount -o remount,bind,ro /"]
    rooted = " && ".join([*mounts, 'exec "$@"'])
    reading = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--no-new-privs"]
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *reading]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", rooted, "sh", *user, sys.executable, ROOT / "container/check.py"],
        env=environment("/mnt") | {"TMPDIR": "/mnt"}, cwd="/", capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("the image works for 12345:12345\n"), done.stderr
    assert not re.search("read-only|permission denied|not writable", done.stderr, re.IGNORECASE), done.stderr


def test_what_is_copied_is_there_and_not_left_out() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    sources = [word for line in instructions("COPY") for word in line.split()[:-1] if not word.startswith("--")]
    named = {source.split("/")[0] for source in sources} - {"", "."}
    assert named <= allowed
    assert {"ladd_dist", "kernels", "launchers", "configs", "container"} <= allowed
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert allowed <= {line.split("/")[0] for line in tracked.splitlines()}, "data or a secret, not the project's"


def test_its_user_has_a_number_and_caches_go_by_home() -> None:
    assert re.fullmatch(r"[1-9]\d*:0", instructions("USER")[-1])
    assert environment("/cache").keys() == {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "HOME"}


def test_the_base_is_pinned_by_tag_and_digest() -> None:
    (base,) = instructions("ARG BASE=.*") or re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert [line.split()[0] for line in instructions("FROM")] == ["${BASE}"] * 2


def test_steps_are_scripts_and_one_of_them_is_how_everybody_installs() -> None:
    steps = [step for line in instructions("RUN") for step in re.findall(r"container/\w+\.\w+", line)]
    assert {*steps} == {f"container/{path.name}" for path in (ROOT / "container").iterdir() if path.is_file()}
    assert re.search(r"^\t.*container/install\.sh ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_moments_in_8_bits_lie_beside_the_environment_here_as_there(tmp_path: Path) -> None:
    """`.venv` is copied whole; the page names the folder that PYTHONPATH takes."""
    (step,) = [line for line in instructions("RUN") if "beside.sh" in line]
    assert step.endswith("container/beside.sh .venv .venv/8bit torchao")
    assert "\tcontainer/beside.sh $(VENV) $@ torchao\n" in (ROOT / "Makefile").read_text()
    assert "PYTHONPATH: /opt/ladd_dist:/opt/ladd_dist/.venv/8bit\n" in (ROOT / "docs/container.md").read_text()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "bin/pip").chmod(0o755)
    command = [ROOT / "container/beside.sh", tmp_path, tmp_path / "8bit", "torchao"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG).stdout.split()
    assert said[-6:] == ["--no-deps", "--target", f"{tmp_path}/8bit", "--constraint", "constraints.txt", "torchao"]
    assert re.search(r"^torchao==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("what", ["build", "run"])
def test_packages_are_installed_without_questions(tmp_path: Path, what: str) -> None:
    calls = tmp_path / "calls"
    for name in ("apt-get", "rm"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n')
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([ROOT / "container/packages.sh", what], env=env, check=True, timeout=HANG)
    update, install, _ = calls.read_text().splitlines()
    assert update == "apt-get update"
    assert install.startswith("apt-get install --yes --no-install-recommends python3 ca-certificates ")
    assert ("gcc" in install.split()) == (what == "run")


@pytest.mark.parametrize(
    ("script", "takes"),
    [
        ("packages.sh", "build | run"),
        ("install.sh", "FOLDER WHAT..."),
        ("beside.sh", "ENVIRONMENT FOLDER PACKAGE"),
    ],
)
def test_a_script_names_what_it_takes(script: str, takes: str) -> None:
    done = subprocess.run([ROOT / "container" / script], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.endswith(f"{takes}\n")
