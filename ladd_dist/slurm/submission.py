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
            raise LaddError(f"run_dir: {path} cannot be written ({error.strerror}): choose another run_dir") from None


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
            submitted.append((script, _number(_sbatch("--parsable", *after, script))))
    except BaseException as error:  # also Ctrl-C
        if left := [number for _, number in submitted if _call("scancel", number).returncode]:
            why = str(error) or "interrupted"
            raise LaddError(f"{why}; jobs are left that scancel did not take: {' '.join(left)}") from None
        raise
    return submitted


def _sbatch(*arguments: str | Path) -> str:
    done = _call("sbatch", *map(str, arguments))
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or ["it does not say why"]
        reason = last.removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
        if fatal := reason.removeprefix("sbatch: fatal: ").removeprefix(reason):
            raise LaddError(f"sbatch does not reach Slurm ({fatal}): submit from a login node")
        raise LaddError(f"Slurm refuses {arguments[-1]}: {reason}: mend the cluster file, or the script")
    return done.stdout


def _number(said: str) -> str:
    """A job's number of what ``sbatch --parsable`` prints, behind what a site's own sbatch may say first."""
    *_, last = said.strip().splitlines() or [""]
    number = last.partition(";")[0]
    if not number.isdecimal():
        raise LaddError(f"sbatch does not say which job it has submitted, but {last!r}: look for it with squeue --me")
    return number


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603 - no shell
    except FileNotFoundError:
        raise LaddError(f"there is no {command[0]} here: submit from a login node, or pass --dry-run") from None
    except OSError as error:
        raise LaddError(f"{command[0]} cannot be started ({error.strerror}): submit from a login node") from None
