"""Every attempt of a job: what it got done, how its ranks ended, and whether there is to be another one.

A job that is requeued keeps its number and counts its restarts; each start is an attempt. While it runs, the exits of
its ranks are collected in a folder of its own; a line in ``run_dir/slurm/attempts.jsonl`` is what stays of it.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ladd_dist.errors import EXIT_PEER_LOST, EXIT_REQUEUE, LaddError
from ladd_dist.files.disk import sync
from ladd_dist.jobs.saved import saved
from ladd_dist.supervision.exits import Exit, exit_code, read, reason

RECORD = "attempts.jsonl"
_RUNNING, _START = "running", "attempt.json"
_FAILURES_TO_EXCLUDE = 2
_FRUITLESS = 3
"""So many attempts in a row that lost a rank and saved nothing new are no accident."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One start of a job, as it began."""

    job: str
    number: str
    restart: int
    nodes: str
    started: float
    saved: int


@dataclass(frozen=True)
class Decision:
    """What is to become of the job."""

    code: int
    requeue: bool
    exclude: tuple[str, ...]
    """Nodes that failed so often that they are not to be used again."""


def folder_of(run_dir: Path) -> Path:
    """Where a run's scripts, their output and the record of attempts lie."""
    return run_dir / "slurm"


def begin(run_dir: Path, data: Path, job: str, env: Mapping[str, str]) -> Path:
    """Start an attempt.

    An earlier one of the same job that never ended, with its batch script killed or its node lost, is recorded first.

    Args:
        data: the dataset's folder.
        env: of the batch script.

    Returns:
        The folder in which the ranks are to say how they end.

    Raises:
        LaddError: outside of a Slurm job.
    """
    if missing := [name for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST") if name not in env]:
        raise LaddError(f"{missing[0]} is not set, so this is no Slurm job: start the script with sbatch")
    number, restart = env["SLURM_JOB_ID"], int(env.get("SLURM_RESTART_COUNT", "0"))
    running = folder_of(run_dir) / _RUNNING
    for left in sorted(running.glob(f"{job}-{number}.*")):
        _close(run_dir, data, left, None)
    folder = running / f"{job}-{number}.{restart}"
    new = _hidden(folder)
    new.mkdir(parents=True)
    attempt = Attempt(job, number, restart, env["SLURM_JOB_NODELIST"], time.time(), saved(job, run_dir, data))
    (new / _START).write_text(json.dumps(asdict(attempt)), encoding="utf-8")
    sync(new / _START)  # whole or not there, or a node that loses its power here would end the next attempt, too
    return new.rename(folder)


def end(run_dir: Path, data: Path, folder: Path, step_code: int) -> Decision:
    """Record an attempt that is over and decide what comes next.

    Args:
        folder: as `begin` returned it.
        step_code: what srun ended with.
    """
    row = _close(run_dir, data, folder, step_code)
    rows = attempts(run_dir)
    # Of several that fell silent at once, one may have taken the others with it.
    failures = Counter(other["failed_nodes"][0] for other in rows if len(other["failed_nodes"]) == 1)
    exclude = tuple(sorted(node for node, count in failures.items() if count >= _FAILURES_TO_EXCLUDE))
    code = row["exit_code"]
    return Decision(code, code == EXIT_REQUEUE or (code == EXIT_PEER_LOST and not _fruitless(rows, row)), exclude)


def attempts(run_dir: Path) -> list[Row]:
    """All that are recorded, but for lines that a full disk or a lost node has cut off."""
    path, rows = folder_of(run_dir) / RECORD, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def failed_nodes(exits: list[Exit]) -> list[str]:
    """The nodes that others ended for, or else those whose processes, unlike others, did not say how they ended."""
    node_of = {other.host: other.node for other in exits}
    named = {node_of.get(host, host) for other in exits for host in other.blamed}
    survived = any(other.code in (EXIT_REQUEUE, EXIT_PEER_LOST) for other in exits)
    return sorted(named or {other.node for other in exits if other.code is None and survived})


def _close(run_dir: Path, data: Path, folder: Path, step_code: int | None) -> Row:
    attempt = Attempt(**json.loads((folder / _START).read_text(encoding="utf-8")))
    exits = read(folder)
    row: Row = {
        "job": attempt.job,
        "number": attempt.number,
        "restart": attempt.restart,
        "nodes": attempt.nodes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(attempt.started)),
        "seconds": None if step_code is None else round(time.time() - attempt.started, 1),
        "saved_before": attempt.saved,
        "saved": saved(attempt.job, run_dir, data),
        "exit_code": None if step_code is None else exit_code(exits, step_code),
        "reason": "the batch script was killed" if step_code is None else reason(exits),
        "failed_nodes": [] if step_code is None else failed_nodes(exits),
    }
    record = folder_of(run_dir) / RECORD
    is_cut = record.is_file() and not record.read_bytes().endswith(b"\n")
    with record.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + json.dumps(row) + "\n")
    shutil.rmtree(folder.rename(_hidden(folder)))
    return row


def _hidden(folder: Path) -> Path:
    """Where an attempt's folder is made and removed: one that is there is whole. What a kill has left goes first."""
    place = folder.with_name(f".{folder.stem}")
    shutil.rmtree(place, ignore_errors=True)
    return place


def _fruitless(rows: list[Row], last: Row) -> bool:
    mine = [row for row in rows if row["number"] == last["number"]][-_FRUITLESS:]
    return (
        sum(row["exit_code"] == EXIT_PEER_LOST and row["saved"] <= row["saved_before"] for row in mine) == _FRUITLESS
    )
