"""Scripts handed to Slurm, one after the other's good end."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ladd_dist.errors import LaddError


def write(scripts: Mapping[Path, str]) -> None:
    """Write scripts where they are submitted from.

    Raises:
        LaddError: naming the folder that cannot be written.
    """
    for path, text in scripts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise LaddError(f"run_dir: {path} cannot be written ({error.strerror})") from None


def submit(scripts: Sequence[Path]) -> list[tuple[Path, str]]:
    """Submit all of them, or none if Slurm refuses one.

    Each starts when the one before it has ended with 0; one that never can is dropped by Slurm.

    Returns:
        The scripts with their jobs' numbers.

    Raises:
        LaddError: what Slurm says against one of them.
    """
    for script in scripts:
        _sbatch("--test-only", script)
    submitted: list[tuple[Path, str]] = []
    try:
        for script in scripts:
            after = [f"--dependency=afterok:{submitted[-1][1]}", "--kill-on-invalid-dep=yes"] if submitted else []
            submitted.append((script, _sbatch("--parsable", *after, script).strip().partition(";")[0]))
    except LaddError:
        for _, number in submitted:
            _call("scancel", number)
        raise
    return submitted


def _sbatch(*arguments: str | Path) -> str:
    done = _call("sbatch", *map(str, arguments))
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it does not say why"]
        reason = lines[-1].removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
        raise LaddError(f"Slurm refuses {arguments[-1]}: {reason}: mend the cluster file, or the script")
    return done.stdout


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603 - no shell
    except FileNotFoundError:
        raise LaddError(f"there is no {command[0]} here: submit from a login node, or pass --dry-run") from None
