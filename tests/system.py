"""What some tests need of the system: programs, and the right to make namespaces."""

import os
import shutil
import subprocess

import pytest

REQUIRED = "LADD_REQUIRE_SYSTEM"


def require(*programs: str, trial: tuple[str, ...] = ("true",)) -> list[str]:
    """Where the programs are.

    The test is skipped if one is missing or the trial of the rights fails; under LADD_REQUIRE_SYSTEM=1 it fails.
    """
    found = {program: shutil.which(program) for program in programs}
    missing = [program for program, path in found.items() if path is None]
    if missing:
        _absent(f"{', '.join(missing)} is not installed: run tests/tools.sh")
    if subprocess.run(trial, capture_output=True).returncode:
        _absent(f"`{' '.join(trial)}` is not allowed here")
    return [path for path in found.values() if path]


def _absent(what: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, but {what}")
    pytest.skip(what)
