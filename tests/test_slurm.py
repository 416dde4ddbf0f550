"""What a real Slurm does with the scripts: its nodes are namespaces, its ranks stand-ins, and all jobs run at once.

tests/test_slurm_training.py has ranks that train.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm import ENDED, Slurm, started

from ladd_dist.jobs.cluster import JOBS
from ladd_dist.slurm.attempts import attempts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIG = "configs/tiny_cpu.yaml"
DONE = {name: ["0"] for name in JOBS}
CHAIN = "synthesize", "train", "evaluate", "export"
LAST = "n4"
"""The node that loses its power; no other job uses it."""


class Jobs:
    """Jobs of one run each."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self._folder = slurm, folder

    def run_dir(self, name: str) -> Path:
        return self._folder / name

    def submit(self, name: str, plan: dict[str, list[str]], *arguments: str, **cluster: Any) -> list[str]:
        keys: dict[str, Any] = {"nodes": 2, "exclude": [LAST], "environment": {"PLAN": json.dumps(DONE | plan)}}
        settings = ["engine=zero3", f"run_dir={json.dumps(str(self.run_dir(name)))}"]
        return self.slurm.submit("--config", CONFIG, *arguments, *settings, **(keys | cluster))

    def runs(self, name: str) -> None:
        """Wait until both ranks of the first attempt are there."""
        folder = self.run_dir(name) / "slurm/running"
        self.slurm.wait_until(lambda: len(list(folder.glob("*.0/*.exit"))) == 2, f"both ranks of {name}")

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        keys = ("job", "restart", "exit_code", "failed_nodes")
        return [tuple(row[key] for key in keys) for row in attempts(self.run_dir(name))]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    folder = tmp_path_factory.mktemp("slurm")
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    stand_in = Path(__file__).with_name("stand_in.py")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    python.chmod(0o755)
    with started(folder / "cluster", folder / "venv", nodes=4) as slurm:
        yield Jobs(slurm, folder)


def test_a_partition_that_is_not_there_and_nodes_that_are_not_are_one_line(jobs: Jobs) -> None:
    run_dir = jobs.run_dir("refused")
    settings = ["--config", CONFIG, "engine=zero3", f"run_dir={run_dir}"]
    said = {"Invalid partition name specified": {"nodes": 2, "partition": "none"}}
    said |= {"Requested node configuration is not available": {"nodes": 5, "jobs": {"train": {"ranks_per_node": 2}}}}
    for reason, cluster in said.items():
        done = jobs.slurm.try_submit(*settings, "train.global_batch=40", **cluster)
        line = f"error: Slurm refuses {run_dir}/slurm/train.sbatch: {reason}: mend the cluster file, or the script\n"
        assert (done.returncode, done.stderr) == (2, line)


@pytest.fixture(scope="module")
def ended(jobs: Jobs) -> dict[str, list[dict[str, str]]]:
    """Every case, beside one another; the fields of its jobs when all have ended."""
    wait, lost = ["wait", "wait", "0"], ["76 n2", "76 n2", "0"]
    names = {
        # Slurm sends the signal from 0 to 30 seconds early, so not before the script listens.
        "limit": jobs.submit("limit", {"train": wait}, time="10", signal_seconds=565),
        "excluded": jobs.submit("excluded", {"train": lost}),
        "refused 'a' \"b\" #c $d %j": jobs.submit("refused 'a' \"b\" #c $d %j", {"train": ["2"]}),
        "broken chain": jobs.submit("broken chain", {"train": ["2"]}, "--job", "chain"),
        "chain": jobs.submit("chain", {"synthesize": ["wait", "0"]}, "--job", "chain"),
        "cancelled": jobs.submit("cancelled", {"train": wait}),
        "lost": jobs.submit("lost", {"train": ["wait", "0"]}, exclude=["n2", "n3"]),
    }
    slurm = jobs.slurm
    jobs.runs("chain")
    slurm.call("scancel", "--batch", "--signal=USR1", names["chain"][0])
    jobs.runs("cancelled")
    slurm.call("scancel", *names["cancelled"])
    jobs.runs("lost")
    slurm.act("lose", LAST)
    slurm.wait_for(names["lost"][0], "PENDING")
    slurm.act("boot", LAST)
    return {name: [slurm.wait_for(number, *ENDED) for number in numbers] for name, numbers in names.items()}


def states(shown: list[dict[str, str]]) -> list[str]:
    return [fields["JobState"] for fields in shown]


def test_a_job_that_meets_its_limit_twice_is_stopped_requeued_and_ends(jobs: Jobs, ended: dict) -> None:
    assert states(ended["limit"]) == ["COMPLETED"]
    assert jobs.rows("limit") == [("train", 0, 75, []), ("train", 1, 75, []), ("train", 2, 0, [])]
    assert all(row["seconds"] < 600 and row["nodes"] for row in attempts(jobs.run_dir("limit")))


def test_a_node_that_failed_twice_is_not_used_a_third_time(jobs: Jobs, ended: dict) -> None:
    assert states(ended["excluded"]) == ["COMPLETED"]
    assert jobs.rows("excluded") == [("train", 0, 76, ["n2"]), ("train", 1, 76, ["n2"]), ("train", 2, 0, [])]
    assert attempts(jobs.run_dir("excluded"))[2]["nodes"] == "n[1,3]"
    assert sorted(ended["excluded"][0]["ExcNodeList"].split(",")) == ["n2", "n4"]


def test_bad_input_ends_a_job_and_names_survive_sbatch(jobs: Jobs, ended: dict) -> None:
    name = "refused 'a' \"b\" #c $d %j"
    (fields,) = ended[name]
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "2:0", "0")
    assert jobs.rows(name) == [("train", 0, 2, [])]
    assert list((jobs.run_dir(name) / "slurm").glob("train-*.out")), "the output is where it was asked for"


def test_a_chain_survives_a_requeue_of_its_first_job(jobs: Jobs, ended: dict) -> None:
    assert states(ended["chain"]) == ["COMPLETED"] * 4
    expected = [
        ("synthesize", 0, 75, []),
        *((job, restart, 0, []) for job, restart in zip(CHAIN, [1, 0, 0, 0], strict=True)),
    ]
    assert jobs.rows("chain") == expected


def test_what_follows_a_refused_job_never_starts(jobs: Jobs, ended: dict) -> None:
    assert states(ended["broken chain"]) == ["COMPLETED", "FAILED", "CANCELLED", "CANCELLED"]
    assert [row[:3] for row in jobs.rows("broken chain")] == [("synthesize", 0, 0), ("train", 0, 2)]


def test_a_cancelled_job_saves_and_stays_cancelled(jobs: Jobs, ended: dict) -> None:
    assert states(ended["cancelled"]) == ["CANCELLED"]
    assert jobs.rows("cancelled") == [("train", 0, 75, [])]


def test_a_lost_node_is_recorded_and_slurm_starts_the_job_again(jobs: Jobs, ended: dict) -> None:
    assert states(ended["lost"]) == ["COMPLETED"]
    assert jobs.rows("lost") == [("train", 0, 75, [LAST]), ("train", 1, 0, [])]
